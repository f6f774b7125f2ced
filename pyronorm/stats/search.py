"""Minimize a function of one positive number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pyronorm.errors import DataError

__all__ = ["minimize_positive"]

_POINTS = 41


def minimize_positive(
    function: Callable[[float], float], low: float, high: float, where: str, remedy: str
) -> float:
    """Where a function is least between two positive numbers.

    The best of a grid on the log scale, then Brent's method between its neighbours. So the function may
    have several minima, as long as they are farther apart than the grid.

    Args:
        function: what to minimize.
        low: smallest argument, positive.
        high: largest argument.
        where: what is searched for, for the message.
        remedy: what to do if there is no minimum, for the message.

    Raises:
        DataError: if the minimum lies at an end, so that there is none inside.
    """
    from scipy.optimize import minimize_scalar

    grid = np.linspace(math.log(low), math.log(high), _POINTS)
    best = int(np.argmin([function(math.exp(t)) for t in grid]))
    if best in (0, _POINTS - 1):
        raise DataError(
            f"{where}: the optimum is not between {low:g} and {high:g}: these data do not determine "
            f"it. {remedy}"
        )
    found = minimize_scalar(
        lambda t: function(math.exp(t)),
        bounds=(grid[best - 1], grid[best + 1]),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return math.exp(float(found.x))
