"""Normalization layers with latent statistics, their normalizers, and conversion of networks."""

from pyronorm.layers.analytic import Analytic
from pyronorm.layers.base import LatentNorm, Normalizer, affine, affine_each
from pyronorm.layers.batch import Batch, Population
from pyronorm.layers.convert import convert
from pyronorm.layers.freshness import trust_statistics
from pyronorm.layers.ghost import Ghost
from pyronorm.layers.group import Group, Instance, Layer
from pyronorm.layers.report import ConversionReport, LayerReport, conversion_report
from pyronorm.layers.rms import RMS
from pyronorm.layers.start import analytic_start, data_dependent_start
from pyronorm.layers.weight import Weight
from pyronorm.layers.whitening import BatchWhitening, GroupWhitening

__all__ = [
    "RMS",
    "Analytic",
    "Batch",
    "BatchWhitening",
    "ConversionReport",
    "Ghost",
    "Group",
    "GroupWhitening",
    "Instance",
    "LatentNorm",
    "Layer",
    "LayerReport",
    "Normalizer",
    "Population",
    "Weight",
    "affine",
    "affine_each",
    "analytic_start",
    "conversion_report",
    "convert",
    "data_dependent_start",
    "trust_statistics",
]
