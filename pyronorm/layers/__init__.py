"""Normalization layers with latent statistics, their normalizers, and conversion of networks."""

from pyronorm.layers.base import LatentNorm, Normalizer, affine_each
from pyronorm.layers.batch import Batch, Population
from pyronorm.layers.convert import convert
from pyronorm.layers.freshness import trust_statistics
from pyronorm.layers.ghost import Ghost
from pyronorm.layers.group import Group, Instance, Layer
from pyronorm.layers.report import ConversionReport, LayerReport, conversion_report
from pyronorm.layers.rms import RMS
from pyronorm.layers.weight import Weight, data_dependent_start

__all__ = [
    "RMS",
    "Batch",
    "ConversionReport",
    "Ghost",
    "Group",
    "Instance",
    "LatentNorm",
    "Layer",
    "LayerReport",
    "Normalizer",
    "Population",
    "Weight",
    "affine_each",
    "conversion_report",
    "convert",
    "data_dependent_start",
    "trust_statistics",
]
