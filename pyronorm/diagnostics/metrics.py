"""How good predictions are: accuracy, likelihood, calibration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyronorm.errors import DataError, ShapeError
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.predict import draws_for, evaluate_draws
from pyronorm.likelihoods import Scores
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

__all__ = ["evaluate", "regression_metrics"]


def regression_metrics(mean: Tensor, y: Tensor) -> dict[str, float]:
    r"""Root mean squared error :math:`\sqrt{\frac1N\sum_i (m_i - y_i)^2}` (torchmetrics).

    Args:
        mean: predictive means.
        y: targets of the same shape, on any device.

    Raises:
        ShapeError: if the shapes differ.
    """
    from torchmetrics.functional.regression import mean_squared_error

    if mean.shape != y.shape:
        raise ShapeError(
            f"regression_metrics: mean and y must have one shape, got {tuple(mean.shape)} and "
            f"{tuple(y.shape)}."
        )
    y = y.to(mean.device)
    return {"rmse": float(mean_squared_error(mean.flatten(), y.flatten(), squared=False))}


@torch.no_grad()
def evaluate(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: int | None = None,
    *,
    batch_size: int = 256,
    seed: Seed = None,
) -> dict[str, float]:
    """Metrics of the posterior predictive distribution on held-out data.

    ``nll``, the mean negative log predictive density per example, and what the likelihood's kind of data
    allows besides: see :meth:`pyronorm.likelihoods.Scores.metrics`. Batches are scored one by one, so
    that memory does not grow with the draws times the examples.

    Args:
        model: the model.
        posterior: as in :func:`pyronorm.predict`.
        data: pairs ``(x, y)``.
        num_samples: as in :func:`pyronorm.predict`.
        batch_size: examples at once, where the data do not come in batches.
        seed: for the draws.

    Returns:
        The metrics by name.

    Raises:
        DataError: if there are no data, no ``y``, impossible ones, or all are missing.
    """
    batches = as_batches(data, batch_size)
    members = draws_for(model, posterior, num_samples, batches, seed, "evaluate")
    scores: list[Scores] = []
    for _, y, output in evaluate_draws(members, batches):
        if y is None:
            raise DataError("evaluate: needs pairs (x, y), got x alone.")
        scores.append(model.likelihood.scores(output, y))
    return Scores.join(scores).metrics()
