"""How far a result is from what it should be, and how far it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

LIMITS = {
    "mean": 1e-4,
    "variance": 1e-4,
    "buffers": 1e-4,
    "entropy": 1e-4,
    "nll": 1e-4,
    "output": 1e-4,
    "gradient": 1e-2,
    "bfloat16 output": 0.05,
    "bfloat16 gradient": 0.3,
    "channels-last output": 1e-4,
    "many draws": 1e-4,
    "loss": 1e-4,
    "pn loss": 1e-4,
    "pn gradient": 1e-2,
}
"""The largest relative errors that pass. Float32 rounds at 6e-8 and bfloat16 at 4e-3, a few layers
and sums of thousands of terms make of it what they make; a wrong formula is off by far more."""


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the expected norm."""
    a, b = (value.detach().double().cpu() for value in (found, expected))
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def worst(
    found: Sequence[Tensor | None], expected: Sequence[Tensor | None], small: float = 1e-3
) -> float:
    """Largest relative error of a gradient; infinite where one of the two is missing.

    Args:
        found: gradients.
        expected: what they should be.
        small: gradients smaller than this share of the largest are measured against that share:
            where a gradient is zero, only rounding is left of it.
    """
    largest = max(float(g.norm()) for g in expected if g is not None)
    errors = [0.0]
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            errors.append(0.0 if a is b else math.inf)
            continue
        size = max(float(b.norm()), small * largest)
        errors.append(float((a.double().cpu() - b).norm()) / size)
    return max(errors)


def judged(errors: Mapping[str, float]) -> dict[str, Any]:
    """The errors, and whether all are within their limits (a NaN is not)."""
    return {**errors, "right": all(error <= LIMITS[name] for name, error in errors.items())}
