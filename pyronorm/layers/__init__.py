"""Normalization layers with latent statistics, their normalizers, and conversion of networks."""

from pyronorm.layers.base import LatentNorm, Normalizer, affine_each
from pyronorm.layers.batch import Batch, Population
from pyronorm.layers.convert import convert
from pyronorm.layers.freshness import trust_statistics
from pyronorm.layers.group import Group, Instance, Layer
from pyronorm.layers.weight import Weight, data_dependent_start
from pyronorm.layers.whitening import BatchWhitening, GroupWhitening

__all__ = [
    "Batch",
    "BatchWhitening",
    "Group",
    "GroupWhitening",
    "Instance",
    "LatentNorm",
    "Layer",
    "Normalizer",
    "Population",
    "Weight",
    "affine_each",
    "convert",
    "data_dependent_start",
    "trust_statistics",
]
