"""How good predictions are: accuracy, likelihood, calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.errors import OptionError, ShapeError
from pyronorm.infer.data import Data, gather
from pyronorm.infer.predict import predict, predictive_nll
from pyronorm.likelihoods import Bernoulli, Categorical, Normal
from pyronorm.model import NormalizationModel

__all__ = ["classification_metrics", "evaluate", "regression_metrics"]

_BINS = 15


def classification_metrics(
    probabilities: Float[Tensor, "*batch classes"], y: Int[Tensor, "*batch"]
) -> dict[str, float]:
    r"""Accuracy, negative log likelihood, calibration error and Brier score.

    * ``accuracy``: share of examples whose most probable class is right (torchmetrics).
    * ``nll``: :math:`-\frac1N\sum_i \log p_{i, y_i}`, in nats.
    * ``ece``: expected calibration error of the most probable class, 15 bins of equal width,
      :math:`\sum_b \frac{|b|}{N} |\mathrm{acc}(b) - \mathrm{conf}(b)|` (torchmetrics; Naeini et al.
      2015).
    * ``brier``: :math:`\frac1N\sum_i\sum_k (p_{ik} - [y_i = k])^2`, between 0 and 2 (Brier 1950).

    Args:
        probabilities: predictive probabilities; every position of a dense output counts.
        y: classes.

    Returns:
        The metrics by name.

    Raises:
        ShapeError: if the shapes do not fit.
    """
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
    )

    if probabilities.shape[:-1] != y.shape:
        raise ShapeError(
            f"classification_metrics: probabilities of shape {tuple(probabilities.shape)} need y of "
            f"shape {tuple(probabilities.shape[:-1])}, got {tuple(y.shape)}."
        )
    classes = probabilities.shape[-1]
    p, y = probabilities.reshape(-1, classes), y.reshape(-1)
    tiny = torch.finfo(p.dtype).tiny
    truth = torch.nn.functional.one_hot(y, classes)
    return {
        "accuracy": float(multiclass_accuracy(p, y, classes, average="micro")),
        "nll": float(-p.gather(1, y[:, None]).clamp(min=tiny).log().mean()),
        "ece": float(multiclass_calibration_error(p, y, classes, n_bins=_BINS)),
        "brier": float((p - truth).square().sum(1).mean()),
    }


def regression_metrics(mean: Tensor, y: Tensor) -> dict[str, float]:
    r"""Root mean squared error :math:`\sqrt{\frac1N\sum_i (m_i - y_i)^2}` (torchmetrics).

    Args:
        mean: predictive means.
        y: targets of the same shape.

    Raises:
        ShapeError: if the shapes differ.
    """
    from torchmetrics.functional.regression import mean_squared_error

    if mean.shape != y.shape:
        raise ShapeError(
            f"regression_metrics: mean and y must have one shape, got {tuple(mean.shape)} and "
            f"{tuple(y.shape)}."
        )
    return {"rmse": float(mean_squared_error(mean.flatten(), y.flatten(), squared=False))}


def evaluate(
    model: NormalizationModel,
    guide: Callable[..., Any],
    data: Data,
    num_samples: int = 32,
    *,
    batch_size: int = 256,
) -> dict[str, float]:
    """Metrics of the posterior predictive distribution on held-out data.

    Categorical and Bernoulli likelihoods: :func:`classification_metrics`. Normal: ``nll`` (mean
    negative log predictive density per example, in nats) and :func:`regression_metrics`.

    Args:
        model: the model.
        guide: as in :func:`pyronorm.predict`.
        data: pairs ``(x, y)``.
        num_samples: number of draws.
        batch_size: examples at once, where the data do not come in batches.

    Returns:
        The metrics by name.

    Raises:
        DataError: if there are no data.
        OptionError: for a likelihood of your own; use :func:`pyronorm.predict` and your metrics.
    """
    x, y = gather(data, batch_size)
    if y is None:
        raise OptionError("evaluate: needs pairs (x, y), got x alone.")
    prediction = predict(model, guide, x, num_samples, batch_size=batch_size, keep_samples=False)
    mean = prediction.mean
    y = y.to(mean.device)
    if isinstance(model.likelihood, Categorical):
        return classification_metrics(mean, y)
    if isinstance(model.likelihood, Bernoulli):
        return classification_metrics(torch.stack([1 - mean, mean], -1), y.long())
    if isinstance(model.likelihood, Normal):
        nll = predictive_nll(model, guide, (x, y), num_samples, batch_size=batch_size)
        return {"nll": nll, **regression_metrics(mean, y)}
    raise OptionError(
        f"evaluate: no metrics for the likelihood {type(model.likelihood).__name__}; use predict() "
        "and metrics of your own."
    )
