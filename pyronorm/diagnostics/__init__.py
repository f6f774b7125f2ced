"""Judging posteriors: export to ArviZ, and metrics of predictions."""

from pyronorm.diagnostics.arviz_export import channels, to_arviz
from pyronorm.diagnostics.metrics import classification_metrics, evaluate, regression_metrics

__all__ = ["channels", "classification_metrics", "evaluate", "regression_metrics", "to_arviz"]
