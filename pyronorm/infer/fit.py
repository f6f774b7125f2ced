"""Training in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from pyronorm.checks import Count, Positive, check_count
from pyronorm.infer.augment import Augment
from pyronorm.infer.callbacks import Progress
from pyronorm.infer.data import Data
from pyronorm.infer.history import History
from pyronorm.infer.options import Objective, Optimization, Validation
from pyronorm.infer.trainer import Trainer
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["fit"]


def fit(
    model: NormalizationModel,
    guide: nn.Module,
    train_data: Data,
    *,
    epochs: Count = 10,
    batch_size: Count = 128,
    lr: Positive | None = None,
    optimization: Optimization | None = None,
    objective: Objective | None = None,
    train_network: bool = True,
    augment: Augment | None = None,
    validation: Validation | None = None,
    callbacks: Sequence[Any] = (),
    fabric: Fabric | None = None,
    seed: Seed = None,
    progress: bool = True,
) -> History:
    r"""Train a model and a guide by stochastic variational inference.

    Maximizes the ELBO per training example,
    :math:`\frac1N\left(\sum_i \mathbb E_q \log p(y_i|x_i,z) - \mathrm{KL}(q \| p)\right)`, over the
    guide's parameters, the likelihood's, and the network's unless it is frozen. Dividing by ``N``
    makes learning rates and clipping thresholds mean what they mean in ordinary training.

    When the network was trained and has batch normalizers, its population statistics are estimated
    at the end (and before each validation) by
    :func:`~pyronorm.estimate_population_statistics`. Parameters live in the modules, not in Pyro's
    global store. To train epoch by epoch, or to keep the history of a run that is interrupted, use a
    :class:`~pyronorm.Trainer`.

    Args:
        model: the model.
        guide: one of :mod:`pyronorm.guides` with a density, a Pyro autoguide, or your own module.
        train_data: pairs ``(x, y)``: a DataLoader, a Dataset, or two tensors (shuffled).
        epochs: passes over the data.
        batch_size: examples per step (and process), where the data do not come in batches.
        lr: learning rate of Adam; None for 1e-3. Not together with an optimizer of your own.
        optimization: an optimizer of your own, schedulers, clipping, accumulation.
        objective: the weight of the KL divergence, an estimator of your own.
        train_network: False freezes the network, in evaluation mode, and trains only the posterior:
            for pretrained networks.
        augment: changes inputs and targets of each training batch, on the device:
            ``augment(x, y)`` returns both. See :class:`pyronorm.datasets.PadCropFlip`.
        validation: data for the predictive NLL after each epoch.
        callbacks: objects that look on, such as ``pyronorm.EarlyStopping(patience=5)``.
        fabric: a Lightning Fabric of your own: device, precision, loggers, several devices or
            processes (DDP, each with its own draw of the latents), such as
            ``Fabric(accelerator="cuda", devices=1, precision="bf16-mixed")``.
        seed: makes the run repeatable, and leaves the user's generators as they were; None draws from
            those.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The course of training.

    Raises:
        OptionError: if options are out of range or contradict each other, if there is nothing to
            train, or if the guide has no density.
        DataError: if data are missing, impossible or not finite, or if the loss becomes so.
        ProcessError: if another process of the fabric fails.
        ShapeError: if ``augment`` changes the number of examples.
    """
    check_count("fit", "epochs", epochs)
    trainer = Trainer(
        model,
        guide,
        train_data,
        batch_size=batch_size,
        lr=lr,
        optimization=optimization,
        objective=objective,
        train_network=train_network,
        augment=augment,
        validation=validation,
        callbacks=callbacks,
        fabric=fabric,
        seed=seed,
    )
    if progress:
        trainer.callbacks.append(Progress())
    return trainer.run(epochs)
