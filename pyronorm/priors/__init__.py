"""Priors of the latents."""

from pyronorm.priors.base import IndependentPrior, Prior
from pyronorm.priors.batch_noise import BatchNoise, batch_noise, batch_noise_of
from pyronorm.priors.hierarchical import HierarchicalBatchNoise
from pyronorm.priors.scale_invariant import ScaleInvariant
from pyronorm.priors.standard import Standard

__all__ = [
    "BatchNoise",
    "HierarchicalBatchNoise",
    "IndependentPrior",
    "Prior",
    "ScaleInvariant",
    "Standard",
    "batch_noise",
    "batch_noise_of",
]
