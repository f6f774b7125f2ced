"""Priors of the latents."""

from pyronorm.priors.base import Prior
from pyronorm.priors.batch_noise import BatchNoise, batch_noise_law
from pyronorm.priors.hierarchical import HierarchicalBatchNoise
from pyronorm.priors.scale_invariant import ScaleInvariant
from pyronorm.priors.standard import Standard

__all__ = [
    "BatchNoise",
    "HierarchicalBatchNoise",
    "Prior",
    "ScaleInvariant",
    "Standard",
    "batch_noise_law",
]
