"""Normalizers: where the reference statistics of a normalization layer come from, one per file."""

from pyronorm.normalizers.analytic import Analytic
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.batch import Batch, Population
from pyronorm.normalizers.deviation import Deviation
from pyronorm.normalizers.exclusive import Exclusive
from pyronorm.normalizers.freshness import trust_statistics
from pyronorm.normalizers.ghost import Ghost
from pyronorm.normalizers.group import Group, Instance, Layer
from pyronorm.normalizers.kernels import affine, affine_each
from pyronorm.normalizers.original import Original
from pyronorm.normalizers.rms import RMS
from pyronorm.normalizers.start import StartNormalizer
from pyronorm.normalizers.sync_batch import SyncBatch
from pyronorm.normalizers.weight import Weight
from pyronorm.normalizers.whitening import BatchWhitening, GroupWhitening

__all__ = [
    "RMS",
    "Analytic",
    "Batch",
    "BatchWhitening",
    "Deviation",
    "Exclusive",
    "Ghost",
    "Group",
    "GroupWhitening",
    "Instance",
    "LatentNorm",
    "Layer",
    "Normalizer",
    "Original",
    "Population",
    "StartNormalizer",
    "SyncBatch",
    "Weight",
    "affine",
    "affine_each",
    "trust_statistics",
]
