"""Stochastic variational inference: Lightning Fabric around Pyro's ELBOModule."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader

from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.infer.data import Data, as_batches, kept_modes, split
from pyronorm.infer.elbo import KLWeight, default_elbo
from pyronorm.infer.history import Epoch, History
from pyronorm.infer.population import estimate_population_statistics
from pyronorm.infer.predict import predictive_nll
from pyronorm.latents import LatentNetwork
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.freshness import batch_layers, invalidate_statistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["fit"]


def fit(
    model: NormalizationModel,
    guide: nn.Module,
    train_data: Data,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
    lr: float = 1e-3,
    scheduler: Callable[[Optimizer], Any] | None = None,
    elbo: ELBO | None = None,
    kl_weight: float | Callable[[float], float] = 1.0,
    gradient_clip_norm: float | None = None,
    train_network: bool = True,
    augment: Callable[[Tensor], Tensor] | None = None,
    validation_data: Data | None = None,
    validation_samples: int = 8,
    patience: int | None = None,
    population_batches: int | None = None,
    device: str = "auto",
    precision: str = "32-true",
    fabric: Fabric | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> History:
    r"""Train a model and a guide by stochastic variational inference.

    Maximizes the ELBO per training example,
    :math:`\frac1N\left(\sum_i \mathbb E_q \log p(y_i|x_i,z) - w\,\mathrm{KL}(q \| p)\right)`, over the
    guide's parameters, the likelihood's, and the network's unless it is frozen. Dividing by ``N``
    makes learning rates and clipping thresholds mean what they mean in ordinary training.

    When the network was trained and has batch normalizers, its population statistics are estimated
    at the end (and before each validation) by
    :func:`~pyronorm.estimate_population_statistics`. Parameters live in the modules, not in Pyro's
    global store.

    Args:
        model: the model.
        guide: one of :mod:`pyronorm.guides` with a density, a Pyro autoguide, or your own module.
        train_data: pairs ``(x, y)``: a DataLoader, a Dataset, or two tensors (shuffled).
        epochs: passes over the data.
        batch_size: examples per step, where the data do not come in batches.
        optimizer: makes the optimizer from parameter groups, each with a ``name`` (``"network"``,
            ``"likelihood"``, ``"guide"``); None for Adam.
        lr: learning rate of Adam; not together with ``optimizer``.
        scheduler: makes a learning rate scheduler from the optimizer; stepped after each epoch.
        elbo: Pyro's estimator; None for TraceMeanField_ELBO where the guide has closed-form KL
            divergences and Trace_ELBO where not.
        kl_weight: ``w``, or a function of the epochs done so far (a fraction within an epoch), e.g.
            ``lambda epoch: min(1.0, epoch / 5)``.
        gradient_clip_norm: largest norm of the gradient; None does not clip.
        train_network: False freezes the network, in evaluation mode, and trains only the posterior:
            for pretrained networks.
        augment: changes the inputs of each training batch, once they are on the device, such as
            :class:`pyronorm.datasets.PadCropFlip`; None for none. Validation and the population
            statistics see the data as they are.
        validation_data: pairs ``(x, y)`` for the predictive NLL after each epoch.
        validation_samples: draws of the latents for it.
        patience: stop after that many epochs without a better validation NLL, and go back to the
            best parameters.
        population_batches: batches for the population statistics; None for all.
        device: Fabric's accelerator: "auto", "cpu", "cuda", "mps". The model stays on it.
        precision: Fabric's precision: "32-true", "bf16-mixed", "64-true", ...
        fabric: a Lightning Fabric of your own (several devices, strategies) instead of ``device``
            and ``precision``.
        seed: seeds Python, NumPy and torch; and, by a generator of its own, the order of data that
            do not come in batches, so that runs with different guides see the same batches.
        progress: show a progress bar.

    Returns:
        The course of training.

    Raises:
        OptionError: if options are out of range or contradict each other, if there is nothing to
            train, or if the guide has no density.
        DataError: if data are missing, impossible or not finite, or if the loss becomes so.
        ShapeError: if ``augment`` changes the number of inputs.
    """
    _check_options(
        epochs=epochs,
        batch_size=batch_size,
        validation_samples=validation_samples,
        patience=patience,
        population_batches=population_batches,
    )
    if patience is not None and validation_data is None:
        raise OptionError("fit: patience needs validation_data, to see when to stop.")
    if optimizer is not None and lr != 1e-3:
        raise OptionError("fit: lr belongs to the default optimizer; set it in optimizer=.")
    if fabric is not None and (device, precision) != ("auto", "32-true"):
        raise OptionError("fit: give either fabric, or device and precision.")
    elbo = default_elbo(guide) if elbo is None else elbo
    if seed is not None:
        pyro.set_rng_seed(seed)
    fabric = _make_fabric(device, precision) if fabric is None else fabric
    batches: Iterable[Any] = as_batches(train_data, batch_size, shuffle=True, seed=seed)
    if isinstance(batches, DataLoader):
        batches = fabric.setup_dataloaders(batches)
    network = model.network
    trains_batch_layers = train_network and bool(batch_layers(network))
    history = History()
    best = math.inf
    best_state: tuple[Any, Any] | None = None
    with (
        pyro.get_param_store().scope(),  # Pyro modules register here, and it is gone afterwards
        kept_modes(model),
        kept_modes(guide),
        _frozen(network, not train_network),
        _progress(progress and fabric.is_global_zero, epochs) as report,
    ):
        _set_modes(model, guide, train_network)
        fabric.to_device(model)
        _make_parameters(guide, batches, fabric)
        groups = _parameter_groups(model, guide)
        raw = Adam(groups, lr=lr) if optimizer is None else optimizer(groups)
        schedule = None if scheduler is None else scheduler(raw)
        step = _Step(model, guide, elbo, raw, fabric, kl_weight, gradient_clip_norm, augment)
        if trains_batch_layers:
            invalidate_statistics(network)
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            loss = _train_epoch(step, batches, epoch, report)
            seconds = time.perf_counter() - start
            rate = raw.param_groups[0]["lr"]
            if schedule is not None:
                schedule.step()
            nll = None
            last = epoch == epochs
            if trains_batch_layers and (last or validation_data is not None):
                estimate_population_statistics(network, train_data, population_batches, batch_size)
            if validation_data is not None:
                nll = predictive_nll(
                    model, guide, validation_data, validation_samples, batch_size=batch_size
                )
            history.epochs.append(Epoch(epoch, loss, step.weight, rate, seconds, nll))
            if patience is None or nll is None:
                history.best_epoch = epoch
                continue
            if nll < best:
                best, history.best_epoch = nll, epoch
                best_state = copy.deepcopy((model.state_dict(), guide.state_dict()))
            elif epoch - history.best_epoch >= patience:
                break
        if best_state is not None:
            model.load_state_dict(best_state[0])
            guide.load_state_dict(best_state[1])
    return history


class _Objective(nn.Module):
    """The negative ELBO, with mixed precision in the network alone.

    Densities of the latents need all their digits: a Gaussian of low rank, for one, a Cholesky
    decomposition, which half precision does not have on a GPU.
    """

    def __init__(self, elbo: ELBOModule, network: LatentNetwork) -> None:
        super().__init__()
        self.elbo = elbo
        self._network = (network,)  # it is a part of the ELBO already

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        device = x.device.type
        loss: Tensor
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            loss = self.elbo(x, y)
        else:
            mixed = torch.autocast(device, torch.get_autocast_dtype(device))
            with _called_under(mixed, self._network[0]), torch.autocast(device, enabled=False):
                loss = self.elbo(x, y)
        return loss


@contextmanager
def _called_under(mixed: torch.autocast, network: LatentNetwork) -> Iterator[None]:
    """For the time of the block, calls of the network run under mixed precision."""
    plain = network.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with mixed:
            return plain(*args, **kwargs)

    network.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del network.forward


class _Step:
    """One optimizer step on a batch."""

    def __init__(
        self,
        model: NormalizationModel,
        guide: nn.Module,
        elbo: ELBO,
        optimizer: Optimizer,
        fabric: Fabric,
        kl_weight: float | Callable[[float], float],
        gradient_clip_norm: float | None,
        augment: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.fabric = fabric
        self.num_data = model.num_data
        self.kl_weight = kl_weight
        self.clip = gradient_clip_norm
        self.augment = augment
        objective = _Objective(ELBOModule(model, guide, elbo), model.network)
        self.module, self.optimizer = fabric.setup(objective, optimizer)
        self.weight = 1.0

    def __call__(self, x: Tensor, y: Tensor, epochs_done: float) -> float:
        """Take the step and return the loss per example."""
        self.weight = (
            self.kl_weight(epochs_done) if callable(self.kl_weight) else float(self.kl_weight)
        )
        if self.augment is not None:
            x = self._augmented(x, self.augment)
        if epochs_done < 1 and not bool(x.isfinite().all()):
            raise DataError("fit: train_data has a batch with inputs that are not finite.")
        self.optimizer.zero_grad()
        with KLWeight(self.weight):
            loss = self.module(x, y) / self.num_data
        value = float(loss.item())
        if not math.isfinite(value):
            raise DataError(
                f"fit: the loss is {value} after {epochs_done:.2f} epochs: training diverged. Lower "
                "the learning rate, or set gradient_clip_norm."
            )
        self.fabric.backward(loss)
        if self.clip is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.clip)
        self.optimizer.step()
        return value

    @staticmethod
    def _augmented(x: Tensor, augment: Callable[[Tensor], Tensor]) -> Tensor:
        new = augment(x)
        if not isinstance(new, Tensor) or new.shape[:1] != x.shape[:1]:
            came = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ShapeError(
                f"fit: augment must return as many inputs as it gets, {tuple(x.shape)}, got {came}."
            )
        return new


def _train_epoch(
    step: _Step, batches: Iterable[Any], epoch: int, report: Callable[[float, float], None]
) -> float:
    """Train on all batches and return the mean loss."""
    total = len(batches) if isinstance(batches, Sized) else None
    losses: list[float] = []
    for position, batch in enumerate(batches):
        x, y = _pair(batch, step.fabric)
        done = epoch - 1 + (position / total if total else 0.0)
        losses.append(step(x, y, done))
        report(epoch - 1 + ((position + 1) / total if total else 0.0), losses[-1])
    if not losses:
        raise DataError("fit: train_data has no batch.")
    return sum(losses) / len(losses)


def _pair(batch: Any, fabric: Fabric) -> tuple[Tensor, Tensor]:
    x, y = split(batch)
    if y is None:
        raise DataError("fit: train_data must give pairs (x, y), got x alone.")
    return fabric.to_device(x), fabric.to_device(y)


def _make_parameters(guide: nn.Module, batches: Iterable[Any], fabric: Fabric) -> None:
    """Run the guide once: an autoguide makes its parameters at its first call."""
    fabric.to_device(guide)
    for batch in batches:
        with torch.no_grad():
            guide(*_pair(batch, fabric))
        fabric.to_device(guide)
        return
    raise DataError("fit: train_data has no batch.")


def _parameter_groups(model: NormalizationModel, guide: nn.Module) -> list[dict[str, Any]]:
    modules = {"network": model.network, "likelihood": model.likelihood, "guide": guide}
    groups = [
        {"name": name, "params": [p for p in module.parameters() if p.requires_grad]}
        for name, module in modules.items()
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise OptionError(
            "fit: there is nothing to train: the network is frozen, and the guide and the "
            "likelihood have no parameters."
        )
    return groups


def _set_modes(model: NormalizationModel, guide: nn.Module, train_network: bool) -> None:
    model.train()
    guide.train()
    if not train_network:
        model.network.eval()


@contextmanager
def _frozen(network: nn.Module, frozen: bool) -> Iterator[None]:
    parameters = [p for p in network.parameters() if p.requires_grad] if frozen else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _progress(show: bool, epochs: int) -> Iterator[Callable[[float, float], None]]:
    if not show:
        yield lambda done, loss: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=epochs)

        def report(done: float, loss: float) -> None:
            epoch = min(epochs, int(done) + 1)
            bar.update(task, completed=done, description=f"epoch {epoch}/{epochs}  loss {loss:.4f}")

        yield report


def _make_fabric(device: str, precision: Any) -> Fabric:
    from lightning_fabric import Fabric

    try:
        return Fabric(accelerator=device, devices=1, precision=precision)
    except (ValueError, RuntimeError) as error:
        raise OptionError(
            f"fit: device={device!r} with precision={precision!r}: {error}"
        ) from error


def _check_options(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise OptionError(f"fit: {name} must be at least 1, got {value}.")
