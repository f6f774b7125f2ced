"""The learning rate schedules of a run: one stepped after each epoch, one after each step."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyronorm.errors import OptionError
from pyronorm.infer.options import Optimization

__all__ = ["Schedules"]


class Schedules:
    """The two schedulers of an optimizer, each of which may be missing.

    Args:
        optimization: makes them.
        optimizer: whose rates they change.

    Raises:
        OptionError: if one is a scheduler of another optimizer, or none.
    """

    def __init__(self, optimization: Optimization, optimizer: Optimizer) -> None:
        factories = (optimization.scheduler, optimization.step_scheduler)
        self._all = [None if factory is None else factory(optimizer) for factory in factories]
        for factory, made in zip(factories, self._all, strict=True):
            if factory is not None and getattr(made, "optimizer", None) is not optimizer:
                raise OptionError(
                    "fit: a scheduler must be one of the optimizer that its function is given, such as "
                    f"lambda optimizer: CosineAnnealingLR(optimizer, epochs), got {type(made).__name__} "
                    "of another."
                )

    def after_epoch(self, loss: float) -> None:
        """Step the first; ReduceLROnPlateau looks at the loss, of validation where there is some."""
        schedule = self._all[0]
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(loss)
        elif schedule is not None:
            schedule.step()

    def after_step(self) -> None:
        """Step the second."""
        if self._all[1] is not None:
            self._all[1].step()

    def state_dict(self) -> list[Any]:
        """Their states."""
        return [None if schedule is None else schedule.state_dict() for schedule in self._all]

    def load_state_dict(self, states: list[Any]) -> None:
        """Go on from the states of :meth:`state_dict`."""
        for schedule, state in zip(self._all, states, strict=True):
            if schedule is not None and state is not None:
                schedule.load_state_dict(state)
