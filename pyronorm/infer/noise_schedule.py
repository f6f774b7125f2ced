"""Noise that changes while a model is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyronorm.errors import OptionError
from pyronorm.infer.callbacks import Callback
from pyronorm.stats.batch_noise import check_batch_size

if TYPE_CHECKING:
    from pyronorm.infer.trainer import Trainer

__all__ = ["NoiseSchedule"]


@dataclass
class NoiseSchedule(Callback):
    """The batch size of the noise as a function of the epochs done: warm-up of the noise.

    Before each step the guide's ``batch_size`` becomes what the function says. For guides that are
    given one, :class:`pyronorm.guides.BatchNoise`; for learned ones a warm-up is the weight of the KL
    divergence, ``pyronorm.Objective(kl_weight=...)``. From little noise, n = 512, to that of n = 8
    within five epochs, evenly in log n::

        pn.NoiseSchedule(lambda epoch: 8 * 64 ** max(0.0, 1 - epoch / 5))

    The prior stays as it is, so the loss has a KL divergence that depends on the epoch, though nothing
    that is learned depends on it.

    Args:
        batch_size: ``n`` > 1 after so many epochs, a fraction within an epoch where the data say how
            long one is.

    Raises:
        OptionError: if it is no function, the guide has no batch size that can be set, or the
            function returns no finite number above 1.
    """

    batch_size: Callable[[float], float]

    def __post_init__(self) -> None:
        if not callable(self.batch_size):
            raise OptionError(
                "NoiseSchedule: batch_size must be a function of the epochs done, such as lambda epoch: "
                f"max(8, 512 / 2**epoch), got {self.batch_size!r}."
            )

    def on_fit_start(self, trainer: Trainer) -> None:
        """Set the batch size of the first step."""
        given = getattr(type(trainer.guide), "batch_size", None)
        if not isinstance(given, property) or given.fset is None:
            raise OptionError(
                f"NoiseSchedule: {type(trainer.guide).__name__} has no batch size to set. Use "
                "guides.BatchNoise; to warm up a learned guide, pyronorm.Objective(kl_weight=...)."
            )
        self._set(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        """Set that of the next step."""
        self._set(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Set that of the next epoch."""
        self._set(trainer)

    def _set(self, trainer: Trainer) -> None:
        size = self.batch_size(trainer.epochs_done)
        trainer.guide.batch_size = check_batch_size(size, "NoiseSchedule")  # type: ignore[assignment]
