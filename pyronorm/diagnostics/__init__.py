"""Judging posteriors: noise, uncertainty, metrics of predictions, export to ArviZ."""

from pyronorm.diagnostics.arviz_export import channels, to_arviz
from pyronorm.diagnostics.layer_inputs import InputShape, input_shape
from pyronorm.diagnostics.metrics import classification_metrics, evaluate, regression_metrics
from pyronorm.diagnostics.noise import (
    BatchSizes,
    Interval,
    LawTest,
    effective_batch_size,
    noise_law_test,
)

__all__ = [
    "BatchSizes",
    "InputShape",
    "Interval",
    "LawTest",
    "channels",
    "classification_metrics",
    "effective_batch_size",
    "evaluate",
    "input_shape",
    "noise_law_test",
    "regression_metrics",
    "to_arviz",
]
