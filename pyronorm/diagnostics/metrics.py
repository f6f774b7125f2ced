"""How good predictions are: accuracy, likelihood, calibration."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.diagnostics.temperature import fit_temperature
from pyronorm.errors import DataError, ShapeError
from pyronorm.infer.batch import MiniBatch
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.precision import running_in
from pyronorm.infer.predict import draws_for, evaluate_draws
from pyronorm.likelihoods import Prediction, Scores
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

__all__ = ["evaluate", "regression_metrics"]


@checked
def regression_metrics(mean: Tensor, y: Tensor) -> dict[str, float]:
    r"""Root mean squared error :math:`\sqrt{\frac1N\sum_i (m_i - y_i)^2}` (torchmetrics).

    Args:
        mean: predictive means.
        y: targets of the same shape, on any device.

    Raises:
        ShapeError: if the shapes differ.
        DataError: if values are not finite.
    """
    from torchmetrics.functional.regression import mean_squared_error

    if mean.shape != y.shape:
        raise ShapeError(
            f"regression_metrics: mean and y must have one shape, got {tuple(mean.shape)} and "
            f"{tuple(y.shape)}."
        )
    y = y.to(mean.device)
    if not bool(mean.isfinite().all() & y.isfinite().all()):
        raise DataError("regression_metrics: mean and y must be finite.")
    return {"rmse": float(mean_squared_error(mean.flatten(), y.flatten(), squared=False))}


@torch.no_grad()
@checked
def evaluate(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: Count | None = None,
    *,
    calibrate_on: Data | None = None,
    batch_size: Count = 256,
    precision: str | None = None,
    compile: bool = False,  # noqa: A002
    seed: Seed = None,
) -> dict[str, float]:
    """Metrics of the posterior predictive distribution on held-out data.

    ``nll``, the mean negative log predictive density per example, and what the likelihood's kind of data
    allows besides: see :meth:`pyronorm.likelihoods.Scores.metrics`. Batches are scored one by one, so
    that memory does not grow with the draws times the examples.

    A temperature fitted on other held-out data costs nothing, so methods are worth what they add at
    their own best temperature. With ``calibrate_on`` every metric is there twice, as it is and
    ``calibrated_...``, with the ``temperature`` between them (:func:`fit_temperature`).

    Args:
        model: the model.
        posterior: as in :func:`pyronorm.predict`.
        data: pairs ``(x, y)``, or ``(x, y, weight)``, whose means are weighted.
        num_samples: as in :func:`pyronorm.predict`.
        calibrate_on: pairs ``(x, y)`` that are neither training nor test data; their predictions are
            kept in memory, for all draws.
        batch_size: examples at once, where the data do not come in batches.
        precision: as in :func:`pyronorm.predict`.
        compile: as there.
        seed: for the draws.

    Returns:
        The metrics by name.

    Raises:
        DataError: if there are no data, no ``y``, impossible ones, or all are missing; or if
            ``calibrate_on`` determines no temperature.
        OptionError: as :func:`pyronorm.predict`.

    Source: Ashukha, Lyzhov, Molchanov & Vetrov, "Pitfalls of In-Domain Uncertainty Estimation and
    Ensembling in Deep Learning" (ICLR 2020), for comparison after calibration.
    """
    running = running_in("evaluate", precision, model.network.like.device)
    evaluated = partial(evaluate_draws, running=running, compile=compile)
    batches = as_batches(data, batch_size)
    members = draws_for(model, posterior, num_samples, batches, seed, "evaluate")
    temperature = 1.0
    likelihoods = {"": model.likelihood}
    if calibrate_on is not None:
        found = evaluated(members, as_batches(calibrate_on, batch_size))
        temperature = _temperature(model, found)
        likelihoods["calibrated_"] = model.likelihood.tempered(temperature)
    scores: dict[str, list[Scores]] = {prefix: [] for prefix in likelihoods}
    for batch, output in evaluated(members, batches):
        y, weight = batch.targets("evaluate")
        for prefix, likelihood in likelihoods.items():
            scores[prefix].append(likelihood.scores(output, y, weight))
    metrics = {
        f"{prefix}{name}": value
        for prefix, parts in scores.items()
        for name, value in Scores.join(parts).metrics().items()
    }
    return metrics if calibrate_on is None else {**metrics, "temperature": temperature}


def _temperature(model: NormalizationModel, evaluated: Iterable[tuple[MiniBatch, Tensor]]) -> float:
    predictions, targets = [], []
    for batch, output in evaluated:
        y, weight = batch.targets("evaluate, calibrate_on")
        if weight is not None:
            raise DataError("evaluate: calibrate_on takes pairs (x, y), without weights.")
        predictions.append(model.likelihood.predict(output))
        targets.append(y)
    return fit_temperature(Prediction.join(predictions), torch.cat(targets))
