"""How good predictions are: accuracy, likelihood, calibration."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.predict import draws_for, evaluate_draws
from pyronorm.likelihoods import Bernoulli, Categorical, Normal
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

__all__ = ["evaluate", "regression_metrics"]

_BINS = 15
_TOLERANCE = 1e-3  # of a sum of probabilities in float32, generously


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

    Categorical and Bernoulli likelihoods: :func:`classification_metrics`. Normal: ``nll`` (mean
    negative log predictive density per example, in nats) and :func:`regression_metrics`.

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
        DataError: if there are no data, no ``y``, or impossible ones.
        OptionError: for a likelihood of your own; use :func:`pyronorm.predict` and your metrics.
    """
    batches = as_batches(data, batch_size)
    members = draws_for(model, posterior, num_samples, batches, seed, "evaluate")
    means, targets, log_p = [], [], []
    with torch.no_grad():
        for _, y, output in evaluate_draws(members, batches):
            if y is None:
                raise DataError("evaluate: needs pairs (x, y), got x alone.")
            log_p.append(model.likelihood.log_prob(output, y, 1))
            means.append(model.likelihood.expected(output, 1).mean(0))
            targets.append(y)
    mean, y = torch.cat(means), torch.cat(targets)
    if isinstance(model.likelihood, Categorical):
        return classification_metrics(mean, y)
    if isinstance(model.likelihood, Bernoulli):
        return classification_metrics(torch.stack([1 - mean, mean], -1), y.long())
    if isinstance(model.likelihood, Normal):
        density = torch.logsumexp(torch.cat(log_p, 1), 0) - math.log(len(log_p[0]))
        return {"nll": -float(density.mean()), **regression_metrics(mean, y)}
    raise OptionError(
        f"evaluate: no metrics for the likelihood {type(model.likelihood).__name__}; use predict() "
        "and metrics of your own."
    )
