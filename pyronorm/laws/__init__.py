"""Laws: distributions of the latents, said in one way by priors and by guides."""

from pyronorm.laws.divergence import kl
from pyronorm.laws.kinds import (
    Hierarchical,
    Independent,
    Joint,
    Rows,
    ScaleGivenShift,
    ShiftGivenScale,
)
from pyronorm.laws.law import Law

__all__ = [
    "Hierarchical",
    "Independent",
    "Joint",
    "Law",
    "Rows",
    "ScaleGivenShift",
    "ShiftGivenScale",
    "kl",
]
