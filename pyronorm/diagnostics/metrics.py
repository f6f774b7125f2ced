"""How good predictions are: accuracy, likelihood, calibration."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.predict import draws_for, evaluate_draws
from pyronorm.likelihoods import Bernoulli, Categorical, Normal
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

__all__ = ["check_classes", "classification_metrics", "evaluate", "regression_metrics"]

_BINS = 15
_TOLERANCE = 1e-3  # of a sum of probabilities in float32, generously


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
        y: classes, on any device.

    Returns:
        The metrics by name.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if they are no probabilities, or no classes.
    """
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
    )

    p, y = check_classes(probabilities, y, "classification_metrics")
    classes = p.shape[-1]
    # torchmetrics takes anything above 1 for logits, and gives 1 itself a bin of its own.
    eps = torch.finfo(p.dtype).eps
    inside = p.clamp(eps, 1 - eps)
    truth = torch.nn.functional.one_hot(y, classes)
    tiny = torch.finfo(p.dtype).tiny
    return {
        "accuracy": float(multiclass_accuracy(p, y, classes, average="micro")),
        "nll": float(-p.gather(1, y[:, None]).clamp(min=tiny).log().mean()),
        "ece": float(multiclass_calibration_error(inside, y, classes, n_bins=_BINS)),
        "brier": float((p - truth).square().sum(1).mean()),
    }


def check_classes(probabilities: Tensor, y: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Flatten positions, and refuse what are no probabilities or classes, naming ``where``."""
    if probabilities.ndim < 1 or probabilities.shape[:-1] != y.shape:
        raise ShapeError(
            f"{where}: probabilities of shape {tuple(probabilities.shape)} need y of shape "
            f"{tuple(probabilities.shape[:-1])}, got {tuple(y.shape)}."
        )
    classes = probabilities.shape[-1]
    p, y = probabilities.reshape(-1, classes), y.to(probabilities.device).reshape(-1)
    if len(p) == 0 or classes < 2:
        raise DataError(f"{where}: needs examples and at least 2 classes, got {tuple(p.shape)}.")
    if y.is_floating_point() or not bool(((y >= 0) & (y < classes)).all()):
        raise DataError(
            f"{where}: y must be integers from 0 to {classes - 1}, got {y.dtype} from "
            f"{float(y.min()):g} to {float(y.max()):g}."
        )
    off = max(float((p.sum(1) - 1).abs().max()), -float(p.min()))
    if not off < _TOLERANCE:
        raise DataError(
            f"{where}: rows of probabilities must be between 0 and 1 and sum to 1; one is off by "
            f"{off:g}. Are they logits? Then take softmax first."
        )
    return p, y.long()


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
