"""Conversion of a network's normalization layers, its report, and starts computed from the network."""

from pyronorm.conversion.convert import convert
from pyronorm.conversion.kind import Kind
from pyronorm.conversion.own_statistics import own_statistics
from pyronorm.conversion.registry import register
from pyronorm.conversion.report import ConversionReport, LayerReport, conversion_report
from pyronorm.conversion.start import analytic_start, data_dependent_start

__all__ = [
    "ConversionReport",
    "Kind",
    "LayerReport",
    "analytic_start",
    "conversion_report",
    "convert",
    "data_dependent_start",
    "own_statistics",
    "register",
]
