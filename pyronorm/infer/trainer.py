"""Stochastic variational inference, epoch by epoch: Lightning Fabric around Pyro's ELBOModule."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyro
from torch import nn
from torch.optim import Adam

from pyronorm.checks import Count, Positive, check_count
from pyronorm.errors import DataError
from pyronorm.guides import Guide
from pyronorm.infer.augment import Augment
from pyronorm.infer.batches import TrainingBatches
from pyronorm.infer.checkpoint import Checkpoint
from pyronorm.infer.data import Data, least_examples
from pyronorm.infer.generators import Generators, kept_order
from pyronorm.infer.history import Epoch, History
from pyronorm.infer.modes import kept_modes
from pyronorm.infer.options import Objective, Optimization, Validation
from pyronorm.infer.population import estimate_population_statistics
from pyronorm.infer.predict import density_sum
from pyronorm.infer.preparation import (
    check_arguments,
    check_numbers,
    check_optimizer,
    check_others,
    check_parameters,
    check_same_callbacks,
    check_same_run,
    default_fabric,
    describe_run,
    frozen,
    frozen_parts,
    make_guide_parameters,
    parameter_groups,
)
from pyronorm.infer.processes import Processes
from pyronorm.infer.schedules import Schedules
from pyronorm.infer.shares import Share
from pyronorm.infer.step import Step
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.freshness import batch_layers, invalidate_statistics, kept_statistics
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

    Between epochs modes, the user's generators and Pyro's store are as they were before.

    Args:
        model: the model.
        guide: one of :mod:`pyronorm.guides` with a density, a Pyro autoguide, or your own module.
        train_data: pairs ``(x, y)``: a DataLoader, a Dataset, or two tensors (shuffled).
        batch_size: examples per step and process, where the data do not come in batches.
        lr: learning rate of Adam; None for 1e-3. Not together with an optimizer of your own.
        optimization: how steps are taken; None for Adam.
        objective: what is maximized; None for the ELBO.
        train_network: False trains the posterior alone; the network is in evaluation mode.
        augment: changes inputs and targets of each training batch, once they are on the device:
            ``augment(x, y)`` returns both, as torchvision's transforms do. None for none. Validation
            and the population statistics see the data as they are.
        validation: what training is judged on after each epoch; None for nothing.
        callbacks: objects that look on, each some :class:`~pyronorm.infer.Callback`.
        population_batches: batches for the population statistics; None for all.
        fabric: a Lightning Fabric of your own, with device, precision, strategy, loggers and
            callbacks; None for one device, the best there is, in single precision.
        seed: seeds the generators of Python, NumPy and torch for the training, which are the user's
            again afterwards; and, by a generator of its own, the order of data that do not come in
            batches, so that runs with different guides see the same batches. None draws from the
            user's generators.

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
        batch_size: Count = 128,
        lr: Positive | None = None,
        optimization: Optimization | None = None,
        objective: Objective | None = None,
        train_network: bool = True,
        augment: Augment | None = None,
        validation: Validation | None = None,
        callbacks: Sequence[Any] = (),
        population_batches: Count | None = None,
        fabric: Fabric | None = None,
        seed: Seed = None,
    ) -> None:
        optimization = Optimization() if optimization is None else optimization
        objective = Objective() if objective is None else objective
        check_arguments(model, guide, optimization, objective, validation)
        check_others(callbacks, fabric, augment, train_network)
        check_numbers(optimization, batch_size, population_batches, lr)
        self.fabric = default_fabric() if fabric is None else fabric
        self.processes = Processes(self.fabric)
        """The processes of the fabric: what they decide, they decide together."""
        self.model = model
        self.guide = guide
        self.validation = validation
        # Checkpoints come last: they store what the others have noted.
        self.callbacks = sorted(callbacks, key=lambda one: isinstance(one, Checkpoint))
        self.history = History()
        """The course of training."""
        self.epochs = 0
        """How many epochs :meth:`run` was asked for."""
        self.steps = 0
        """Steps of the optimizer so far."""
        self.epochs_done = 0.0
        """Epochs so far, a fraction within an epoch where the data say how long it is."""
        self._data = train_data
        self._batch_size = batch_size
        self._population_batches = population_batches
        self._train_network = train_network
        self._statistics_are_current = True
        self._stop = False
        self._within_epoch = False
        self._started = self._seconds = 0.0  # of the epoch, and before it was resumed
        with self.processes.together():
            self._frozen_parts = frozen_parts(model.network) if train_network else []
            self._kept = [layer for part in self._frozen_parts for layer in batch_layers(part)]
            layers = batch_layers(model.network) if train_network else []
            self._trains_batch_layers = len(layers) > len(self._kept)
            start = None if seed is None else self.processes.from_first(lambda: seed_value(seed))
            self._generators = Generators(start, self.fabric.device, self.processes.rank)
            least = least_examples(model.network) if train_network else 1
            self._batches = TrainingBatches(
                train_data, model, batch_size, start, least, self.processes
            )
            with self._training():
                self.fabric.to_device(model)
                make_guide_parameters(model, guide, self.fabric, self._batches)
                groups = parameter_groups(model, guide)
                make = optimization.optimizer
                lr = 1e-3 if lr is None else lr
                self.optimizer = Adam(groups, lr=lr) if make is None else make(groups)
                check_optimizer(self.optimizer, groups)
                self._schedules = Schedules(optimization, self.optimizer)
                self._run = describe_run(
                    model,
                    guide,
                    self.optimizer,
                    batch_size=batch_size,
                    train_network=train_network,
                    accumulate=optimization.accumulate,
                    compile=optimization.compile,
                    gradient_clip_norm=optimization.gradient_clip_norm,
                    seed=start,
                    processes=self.processes.size,
                )
                self.processes.exchange()  # all are there, for what Fabric does with all of them
                self._step = Step(
                    model,
                    guide,
                    self.optimizer,
                    self.fabric,
                    objective,
                    optimization,
                    augment,
                    self._before_change,
                    self.processes,
                )

    @property
    def loss(self) -> float:
        """The last loss that is known, per example."""
        return self._step.loss

    def stop(self) -> None:
        """End :meth:`run` after the present epoch; for callbacks."""
        self._stop = True

    def run(self, epochs: Count) -> History:
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
            with self.processes.together():
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
        with self.processes.together():
            number = len(self.history.epochs) + 1
            with self._training():
                self._started = time.perf_counter() - self._seconds
                loss = self._pass_over_data(number)
                seconds = time.perf_counter() - self._started
                self._seconds = 0.0
                rate = float(self.optimizer.param_groups[0]["lr"])
            nll = self._validate()
            self._schedules.after_epoch(loss if nll is None else nll)
            weight = self._step.kl_weight
            epoch = Epoch(number, loss, weight, rate, seconds, nll, *self._parts)
            self.history.epochs.append(epoch)
            self.history.kept_epoch = number
            if self.fabric.loggers:
                known = {key: value for key, value in asdict(epoch).items() if value is not None}
                self.fabric.log_dict(known, step=number)
            self._call("on_epoch_end")
            self._stop = any(stop for (stop,) in self.processes.exchange(float(self._stop)))
        return epoch

    def update_statistics(self) -> None:
        """Estimate the population statistics, if training made them stale; stamp the guide."""
        if not self._statistics_are_current:
            with self._untouched():
                estimate_population_statistics(
                    self.model,
                    self._data,
                    self._population_batches,
                    self._batch_size,
                    keep=self._kept,
                    fabric=self.fabric,
                    progress=False,
                )
            self._statistics_are_current = True
        if isinstance(self.guide, Guide) and any(True for _ in self.guide.parameters()):
            self.guide.stamp(self.model)

    def state_dict(self) -> dict[str, Any]:
        """What the run needs to go on, of plain types and tensors; between steps, in all processes."""
        return {
            "run": self._run,
            "model": self.model.state_dict(),
            "guide": self.guide.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedules": self._schedules.state_dict(),
            "step": self._step.state_dict(),
            "batches": self.processes.gather(self._batches.state(self._generators)),
            "steps": self.steps,
            "seconds": time.perf_counter() - self._started if self._within_epoch else 0.0,
            "statistics_are_current": self._statistics_are_current,
            "stopped": self._stop,
            "history": self.history.state_dict(),
            "callbacks": [[type(one).__name__, one.state_dict()] for one in self._stored],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`, in a trainer made with the same arguments.

        Raises:
            OptionError: if the state is of another run.
        """
        check_same_run(self._run, state["run"])
        stored = state["callbacks"]
        check_same_callbacks(
            [type(one).__name__ for one in self._stored], [one[0] for one in stored]
        )
        self.model.load_state_dict(state["model"])
        self.guide.load_state_dict(state["guide"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._schedules.load_state_dict(state["schedules"])
        self._step.load_state_dict(state["step"])
        mine = state["batches"][self.processes.rank]
        self._within_epoch = self._batches.restore(mine, self._generators)
        self.steps, self._seconds = state["steps"], state["seconds"]
        self._statistics_are_current = state["statistics_are_current"]
        self._stop = state["stopped"]
        self.history.load_state_dict(state["history"])
        for one, (_, kept) in zip(self._stored, stored, strict=True):
            one.load_state_dict(kept)

    @property
    def _stored(self) -> list[Any]:
        return [one for one in self.callbacks if hasattr(one, "state_dict")]

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        self.update_statistics()
        data, number = self.validation.data, self.validation.num_samples
        share = Share(self.processes, rounds=True)
        with self._untouched():
            found = density_sum(self.model, self.guide, data, number, self._batch_size, share=share)
        rows = self.processes.exchange(*found)
        count = sum(row[1] for row in rows)
        if not count:
            raise DataError("data: all values of y are missing, or count for nothing.")
        return -sum(row[0] for row in rows) / count

    def _pass_over_data(self, number: int) -> float:
        """Train on all batches and return the mean loss."""
        step, batches = self._step, self._batches
        if not self._within_epoch:
            step.start()
        self._within_epoch = True
        per_batch = 1 / batches.total if batches.total else 0.0
        for batch in batches.run_through(self._generators):
            self.epochs_done = number - 1 + (batches.position - 1) * per_batch
            if step(batch, self.epochs_done, stands_in=batches.stands_in):
                self.epochs_done = number - 1 + batches.position * per_batch
                self._after_step()
        if step.finish():
            self._after_step()
        check_parameters(self.model, self.guide)
        self.processes.share_buffers(self.model, self.guide)
        loss = step.total / batches.position
        self._parts = step.parts(batches.position)
        batches.finish()
        self._within_epoch = False
        self.epochs_done = float(number)
        return loss

    def _before_change(self) -> None:
        if isinstance(self.guide, Guide):
            self.guide.stamp(None)
        if self._trains_batch_layers and self._statistics_are_current:
            invalidate_statistics(self.model.network, self._kept)
            self._statistics_are_current = False

    def _after_step(self) -> None:
        self.steps += 1
        self._schedules.after_step()
        self._call("on_step_end")

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Modes, generators and Pyro's store of training; afterwards they are as they were."""
        with (
            pyro.get_param_store().scope(),  # Pyro modules register here, and it is gone afterwards
            self._generators.use(),
            kept_modes(self.model),
            kept_modes(self.guide),
            frozen(self.model.network, not self._train_network),
            kept_statistics(self._kept),
        ):
            self.model.train()
            self.guide.train()
            parts = self._frozen_parts if self._train_network else [self.model.network]
            for part in parts:
                part.eval()
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
