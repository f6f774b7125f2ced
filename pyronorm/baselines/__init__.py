"""Rivals of posteriors over normalization statistics, in the same table.

They take a :class:`~pyronorm.NormalizationModel` or a
:class:`~pyronorm.likelihoods.Prediction` and return a :class:`~pyronorm.likelihoods.Prediction`,
so that all metrics apply to them. Only the jackknife gives
intervals. A deep ensemble is :class:`pyronorm.Ensemble`, a temperature
:func:`pyronorm.diagnostics.fit_temperature`.
"""

from pyronorm.baselines.dropout import predict_dropout
from pyronorm.baselines.jackknife import Jackknife, fit_jackknife
from pyronorm.baselines.laplace import LastLayerLaplace, fit_laplace
from pyronorm.baselines.swag import CollectWeights, WeightSWAG

__all__ = [
    "CollectWeights",
    "Jackknife",
    "LastLayerLaplace",
    "WeightSWAG",
    "fit_jackknife",
    "fit_laplace",
    "predict_dropout",
]
