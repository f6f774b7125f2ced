"""What looks on while a model is trained: early stopping, progress, objects of the user's own."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyronorm.checks import Count, check_count
from pyronorm.errors import OptionError
from pyronorm.progress import progress_bar

if TYPE_CHECKING:
    from pyronorm.infer.trainer import Trainer

__all__ = ["Callback", "EarlyStopping", "Progress"]

_SECONDS = 0.5  # between losses that are shown


class Callback:
    """What :class:`pyronorm.Trainer` calls on the way; each method does nothing by itself.

    Derive from it, or write any object with some of these methods. The callbacks of a Lightning
    Fabric are called too. Between epochs the model has the modes and generators of the user's, so
    that ``pyronorm.predict`` and ``evaluate`` can be called; their population statistics have to be
    there: call ``trainer.update_statistics()`` first.

    A callback that has a ``state_dict`` and a ``load_state_dict`` is stored in checkpoints.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Called when :meth:`pyronorm.Trainer.run` begins, of ``trainer.epochs`` epochs."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Called after each step of the optimizer; ``trainer.loss`` is the last loss known."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Called after each epoch; ``trainer.history.epochs[-1]`` says what happened in it."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Called when :meth:`pyronorm.Trainer.run` ends, with population statistics estimated."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Called when an error or an interruption ends :meth:`pyronorm.Trainer.run`."""


@dataclass
class EarlyStopping(Callback):
    """Stop without a better validation NLL, and go back to the best parameters.

    The best parameters, with their population statistics, are put back at the end, after an
    interruption as well.

    Args:
        patience: stop after that many epochs without a better validation NLL.

    Raises:
        OptionError: if ``patience`` is below 1, or training has no validation.
    """

    patience: Count
    _best: float = field(default=math.inf, init=False, repr=False)
    _best_epoch: int = field(default=0, init=False, repr=False)
    _best_state: dict[str, dict[str, Any]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_count("EarlyStopping", "patience", self.patience)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Refuse to run without validation; begin anew."""
        if trainer.validation is None:
            raise OptionError(
                "EarlyStopping: fit needs validation=pyronorm.Validation(data), to see when to stop."
            )
        if not trainer.history.epochs:  # the object may have served another run
            self._best, self._best_epoch, self._best_state = math.inf, 0, None

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Keep the best parameters, or stop."""
        epoch = trainer.history.epochs[-1]
        nll = math.inf if epoch.validation_nll is None else epoch.validation_nll
        if nll < self._best:
            self._best, self._best_epoch = nll, epoch.epoch
            self._best_state = {
                name: {key: _copied(value) for key, value in module.state_dict().items()}
                for name, module in _modules(trainer).items()
            }
        elif epoch.epoch - self._best_epoch >= self.patience:
            trainer.stop()
        trainer.history.kept_epoch = self._best_epoch

    def on_fit_end(self, trainer: Trainer) -> None:
        """Put the best parameters back."""
        if self._best_state is not None:
            for name, module in _modules(trainer).items():
                module.load_state_dict(self._best_state[name])

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Put the best parameters back."""
        self.on_fit_end(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"nll": self._best, "epoch": self._best_epoch, "state": self._best_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self._best, self._best_epoch = state["nll"], state["epoch"]
        self._best_state = state["state"]


class Progress(Callback):
    """A progress bar with the epoch and the loss."""

    def __init__(self) -> None:
        self._stack: ExitStack | None = None
        self._bar: Any = None
        self._loss, self._asked = math.nan, -math.inf  # not in each step: a device is waited for

    def on_fit_start(self, trainer: Trainer) -> None:
        """Show the bar."""
        if trainer.fabric.is_global_zero:
            self._stack = ExitStack()
            bar = progress_bar("training", trainer.epochs, lasting=True)
            self._bar = self._stack.enter_context(bar)

    def on_step_end(self, trainer: Trainer) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        done = trainer.epochs_done
        epoch = min(trainer.epochs, int(done) + 1)
        now = time.monotonic()
        if now - self._asked >= _SECONDS:
            self._loss, self._asked = trainer.loss, now
        self._show(trainer, epoch, done)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Move the bar, and show the loss of the epoch, which has been read by now."""
        if self._bar is not None:
            done = len(trainer.history.epochs)
            self._loss = trainer.history.losses[-1]
            self._show(trainer, done, done)

    def _show(self, trainer: Trainer, epoch: int, done: float) -> None:
        self._bar.advance(f"epoch {epoch}/{trainer.epochs}  loss {self._loss:.4f}", to=done)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Leave the bar as it is."""
        if self._stack is not None:
            self._stack.close()
            self._stack = self._bar = None

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Leave the bar as it is."""
        self.on_fit_end(trainer)


def _modules(trainer: Trainer) -> dict[str, Any]:
    return {"model": trainer.model, "guide": trainer.guide}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
