"""Stochastic variational inference, epoch by epoch: Lightning Fabric around Pyro's ELBOModule."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from pyronorm.checks import check_count, check_instance, check_positive
from pyronorm.errors import DataError, OptionError
from pyronorm.guides import Guide
from pyronorm.infer.data import (
    Data,
    as_batches,
    count_examples,
    folded,
    has_small_rest,
    kept_modes,
    least_examples,
    num_batches,
    split,
)
from pyronorm.infer.elbo import default_elbo
from pyronorm.infer.generators import Generators, kept_order
from pyronorm.infer.history import Epoch, History
from pyronorm.infer.options import Objective, Optimization, Validation
from pyronorm.infer.population import estimate_population_statistics
from pyronorm.infer.predict import predictive_nll
from pyronorm.infer.preparation import (
    check_guide,
    check_num_data,
    check_parameters,
    default_fabric,
    frozen,
    parameter_groups,
)
from pyronorm.infer.step import Augment, Step
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.freshness import batch_layers, invalidate_statistics
from pyronorm.randomness import Seed, seed_value

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Trainer"]


class Trainer:
    """Trains a model and a guide, an epoch at a time.

    :func:`pyronorm.fit` is this in one line. By hand::

        trainer = pn.Trainer(model, guide, train_data, lr=1e-2)
        for _ in range(30):
            print(trainer.epoch())
        trainer.update_statistics()

    Between epochs the modes of the modules, the user's generators and Pyro's store are as they were.
    Network and guide stay on Fabric's device.

    Args:
        model: the model.
        guide: one of :mod:`pyronorm.guides` with a density, a Pyro autoguide, or your own module.
        train_data: pairs ``(x, y)``: a DataLoader, a Dataset, or two tensors (shuffled).
        batch_size: examples per step, where the data do not come in batches.
        lr: learning rate of Adam; None for 1e-3. Not together with an optimizer of your own.
        optimization: how steps are taken; None for Adam.
        objective: what is maximized; None for the ELBO.
        train_network: False freezes the network, in evaluation mode, and trains only the posterior:
            for pretrained networks.
        augment: changes inputs and targets of each training batch, once they are on the device:
            ``augment(x, y)`` returns both, as torchvision's transforms do. None for none. Validation
            and the population statistics see the data as they are.
        validation: what training is judged on after each epoch; None for nothing.
        callbacks: objects that look on: :class:`~pyronorm.infer.EarlyStopping`, any
            :class:`~pyronorm.infer.Callback`.
        population_batches: batches for the population statistics; None for all.
        fabric: a Lightning Fabric of your own, with device, precision, strategy, loggers and
            callbacks; None for one device, the best there is, in single precision.
        seed: seeds the generators of Python, NumPy and torch for the training, which are the user's
            again afterwards; and, by a generator of its own, the order of data that do not come in
            batches, so that runs with different guides see the same batches. None draws from the
            user's generators.

    Attributes:
        history: the course of training.
        epochs: how many epochs :meth:`run` was asked for.
        optimizer: the torch optimizer.

    Raises:
        OptionError: if options are out of range or contradict each other, if there is nothing to
            train, or if the guide has no density. The model is then as it was.
        DataError: if there are no data, or no pairs.
    """

    def __init__(
        self,
        model: NormalizationModel,
        guide: nn.Module,
        train_data: Data,
        *,
        batch_size: int = 128,
        lr: float | None = None,
        optimization: Optimization | None = None,
        objective: Objective | None = None,
        train_network: bool = True,
        augment: Augment | None = None,
        validation: Validation | None = None,
        callbacks: Sequence[Any] = (),
        population_batches: int | None = None,
        fabric: Fabric | None = None,
        seed: Seed = None,
    ) -> None:
        optimization = Optimization() if optimization is None else optimization
        objective = Objective() if objective is None else objective
        check_instance(
            "fit", "model", model, NormalizationModel, "NormalizationModel(network, ...)"
        )
        check_guide(model, guide)
        check_instance(
            "fit", "optimization", optimization, Optimization, "Optimization(accumulate=2)"
        )
        check_instance("fit", "objective", objective, Objective, "Objective(kl_weight=0.5)")
        if validation is not None:
            check_instance("fit", "validation", validation, Validation, "Validation((x, y))")
        check_count("fit", "batch_size", batch_size)
        if population_batches is not None:
            check_count("fit", "population_batches", population_batches)
        if lr is not None:
            check_positive("fit", "lr", lr)
            if optimization.optimizer is not None:
                raise OptionError(
                    "fit: lr belongs to the default optimizer; set it in Optimization(optimizer=...)."
                )
        elbo = default_elbo(guide) if objective.elbo is None else objective.elbo
        self.model = model
        self.guide = guide
        self.fabric = default_fabric() if fabric is None else fabric
        self.validation = validation
        self.callbacks = list(callbacks)
        self.history = History()
        self.epochs = 0
        self.steps = 0
        """Steps of the optimizer so far."""
        self.epochs_done = 0.0
        """Epochs so far, a fraction within an epoch where the data say how long it is."""
        self._data = train_data
        self._batch_size = batch_size
        self._population_batches = population_batches
        self._train_network = train_network
        self._trains_batch_layers = train_network and bool(batch_layers(model.network))
        self._statistics_are_current = True
        self._stop = False
        start = None if seed is None else seed_value(seed)
        self._generators = Generators(start, self.fabric.device)
        least = least_examples(model.network) if train_network else 1
        batches = as_batches(train_data, batch_size, shuffle=True, seed=start, least=least)
        self._least = least if has_small_rest(batches, least) else 1
        self._expected = count_examples(batches)
        check_num_data(model.num_data, self._expected, batches)
        if isinstance(batches, DataLoader):
            batches = self.fabric.setup_dataloaders(batches)
        self._batches = batches
        with self._training():
            self.fabric.to_device(model)
            self._make_guide_parameters()
            groups = parameter_groups(model, guide)
            make = optimization.optimizer
            lr = 1e-3 if lr is None else lr
            self.optimizer = Adam(groups, lr=lr) if make is None else make(groups)
            check_instance(
                "fit", "what optimizer makes", self.optimizer, torch.optim.Optimizer, "SGD(groups)"
            )
            factories = (optimization.scheduler, optimization.step_scheduler)
            self._schedule, self._step_schedule = (
                None if factory is None else factory(self.optimizer) for factory in factories
            )
            self._step = Step(
                model,
                guide,
                elbo,
                self.optimizer,
                self.fabric,
                objective,
                optimization,
                augment,
                self._before_change,
            )

    @property
    def loss(self) -> float:
        """The last loss that is known, per example."""
        return self._step.loss

    def stop(self) -> None:
        """End :meth:`run` after the present epoch; for callbacks."""
        self._stop = True

    def run(self, epochs: int) -> History:
        """Train until so many epochs are done, or a callback stops; then estimate statistics.

        Args:
            epochs: passes over the data, those already done included.

        Returns:
            The course of training.
        """
        check_count("fit", "epochs", epochs)
        self.epochs = epochs
        self._stop = False
        try:
            self._call("on_fit_start")
            while len(self.history.epochs) < epochs and not self._stop:
                self.epoch()
            self.update_statistics()
            self._call("on_fit_end")
        except BaseException as error:
            self._call("on_exception", error)
            raise
        finally:
            for logger in self.fabric.loggers:
                logger.finalize("success")
        return self.history

    def epoch(self) -> Epoch:
        """Train for one epoch, validate, and tell the callbacks.

        Returns:
            What happened.

        Raises:
            DataError: if data are missing, impossible or not finite, or if the loss or the
                parameters become so.
            ShapeError: if ``augment`` changes the number of examples.
        """
        number = len(self.history.epochs) + 1
        with self._training():
            start = time.perf_counter()
            loss = self._pass_over_data(number)
            seconds = time.perf_counter() - start
            rate = float(self.optimizer.param_groups[0]["lr"])
        nll = self._validate()
        if isinstance(self._schedule, ReduceLROnPlateau):
            self._schedule.step(loss if nll is None else nll)
        elif self._schedule is not None:
            self._schedule.step()
        epoch = Epoch(number, loss, self._step.kl_weight, rate, seconds, nll)
        self.history.epochs.append(epoch)
        self.history.best_epoch = number
        if self.fabric.loggers:
            known = {key: value for key, value in asdict(epoch).items() if value is not None}
            self.fabric.log_dict(known, step=number)
        self._call("on_epoch_end")
        return epoch

    def update_statistics(self) -> None:
        """Estimate the population statistics, if training made them stale."""
        if self._statistics_are_current:
            return
        with self._untouched():
            estimate_population_statistics(
                self.model, self._data, self._population_batches, self._batch_size
            )
        self._statistics_are_current = True

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        self.update_statistics()
        with self._untouched():
            return predictive_nll(
                self.model,
                self.guide,
                self.validation.data,
                self.validation.num_samples,
                batch_size=self._batch_size,
            )

    def _pass_over_data(self, number: int) -> float:
        """Train on all batches and return the mean loss."""
        step = self._step
        total = num_batches(self._batches)
        count = 0
        step.start()
        examples = 0
        for count, batch in enumerate(folded(self._batches, self._least), start=1):
            x, y = self._pair(batch)
            examples += len(x)
            self.epochs_done = number - 1 + ((count - 1) / total if total else 0.0)
            if step(x, y, self.epochs_done):
                self.epochs_done = number - 1 + (count / total if total else 0.0)
                self._after_step()
        if count == 0:
            raise DataError("fit: train_data has no batch.")
        if number == 1 and self._expected is None:
            check_num_data(self.model.num_data, examples, range(count))
        if step.finish():
            self._after_step()
        self.epochs_done = float(number)
        check_parameters(self.model, self.guide)
        return step.total / count

    def _before_change(self) -> None:
        if self._trains_batch_layers and self._statistics_are_current:
            invalidate_statistics(self.model.network)
            self._statistics_are_current = False

    def _after_step(self) -> None:
        self.steps += 1
        if self._step_schedule is not None:
            self._step_schedule.step()
        self._call("on_step_end")

    def _pair(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = split(batch)
        if y is None:
            raise DataError("fit: train_data must give pairs (x, y), got x alone.")
        return self.model.network.prepare(x), self.fabric.to_device(y)

    def _make_guide_parameters(self) -> None:
        """Run the guide once: an autoguide makes its parameters at its first call."""
        self.fabric.to_device(self.guide)
        if isinstance(self.guide, Guide):
            return
        for batch in self._batches:
            with torch.no_grad():
                self.guide(*self._pair(batch))
            self.fabric.to_device(self.guide)
            return
        raise DataError("fit: train_data has no batch.")

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Modes, generators and Pyro's store of training; afterwards they are as they were."""
        with (
            pyro.get_param_store().scope(),  # Pyro modules register here, and it is gone afterwards
            self._generators.use(),
            kept_modes(self.model),
            kept_modes(self.guide),
            frozen(self.model.network, not self._train_network),
        ):
            self.model.train()
            self.guide.train()
            if not self._train_network:
                self.model.network.eval()
            yield

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Whatever is drawn within: training goes on as if nothing had been."""
        generators = Generators(0, self.fabric.device)
        with pyro.get_param_store().scope(), generators.use(), kept_order(self._data):
            yield

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, hook, None)
            if method is not None:
                method(self, *arguments)
        self.fabric.call(hook, self, *arguments)
