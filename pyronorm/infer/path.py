"""Moments of a path: mean, variance and the last deviations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyronorm.checks import Count
from pyronorm.errors import OptionError
from pyronorm.stats import Moments, merge_moments

__all__ = ["Path"]


class Path:
    """Points of a path one after another, in float64; of the deviations the last ones are kept.

    Args:
        rank: how many, at least 2.
        where: the name of what collects, for messages.

    Raises:
        OptionError: if ``rank`` is below 2.
    """

    def __init__(self, rank: Count, where: str) -> None:
        if rank < 2:
            raise OptionError(f"{where}: rank must be at least 2, got {rank}.")
        self.rank, self.where = rank, where
        self.moments: Moments | None = None
        self.last: list[Tensor] = []

    def __len__(self) -> int:
        return 0 if self.moments is None else self.moments.count

    @torch.no_grad()
    def add(self, point: Tensor) -> None:
        """Add a point, and its deviation from the mean of all up to it."""
        point = point.detach().double()
        new = Moments(1, point.clone(), torch.zeros_like(point))
        self.moments = new if self.moments is None else merge_moments(self.moments, new)
        self.last = [*self.last, point - self.moments.mean][-self.rank :]

    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, biased variance, and the last deviations in columns.

        Raises:
            OptionError: if there are fewer than 2 points.
        """
        if self.moments is None or len(self) < 2:
            raise OptionError(
                f"{self.where}: needs at least 2 points of the path, got {len(self)}. Train longer, or "
                "with a smaller after= or every=."
            )
        return self.moments.mean, self.moments.var, torch.stack(self.last, 1)

    def state_dict(self) -> dict[str, Any]:
        """What has been collected."""
        kept = self.moments
        moments = (
            None if kept is None else {"count": kept.count, "mean": kept.mean, "var": kept.var}
        )
        return {"moments": moments, "deviations": list(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self.moments = None if state["moments"] is None else Moments(**state["moments"])
        self.last = list(state["deviations"])
