"""An interval for each value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyronorm.checks import checked
from pyronorm.display import displayed
from pyronorm.errors import ShapeError

__all__ = ["Intervals"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Intervals:
    """An interval for each target.

    Attributes:
        mean: the predicted mean.
        lower: lower ends, of the shape of the data.
        upper: upper ends.
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor

    @checked
    def coverage(self, y: Tensor) -> float:
        """Share of targets within their intervals, ends included; missing ones (NaN) don't count.

        Raises:
            ShapeError: if ``y`` has another shape.
        """
        if y.shape != self.lower.shape:
            raise ShapeError(
                f"Intervals.coverage: y must have the shape {tuple(self.lower.shape)}, got "
                f"{tuple(y.shape)}."
            )
        y = y.to(self.lower.device)
        inside = (self.lower <= y) & (y <= self.upper)
        return float(inside[~y.isnan()].double().mean())

    @property
    def width(self) -> Tensor:
        """Length of each interval."""
        return self.upper - self.lower
