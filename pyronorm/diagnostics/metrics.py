"""How good predictions are: accuracy, likelihood, calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.diagnostics.temperature import fit_temperature
from pyronorm.display import displayed, frame, in_line
from pyronorm.errors import DataError, ShapeError
from pyronorm.infer.batch import MiniBatch
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.lengths import num_batches
from pyronorm.infer.precision import running_in
from pyronorm.infer.predict import draws_for, evaluate_draws
from pyronorm.likelihoods import Prediction, Scores
from pyronorm.model import NormalizationModel
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluation", "evaluate", "regression_metrics"]

_CALIBRATED = "calibrated_"
_POINT = "all draws are equal: mutual information is identically 0, and tells no outliers"


@displayed
class Evaluation(dict[str, float]):
    """Metrics by name, a dictionary that is a table in a notebook.

    Attributes:
        note: what the numbers do not say by themselves; empty if there is nothing.
    """

    note = ""

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        names = [name for name in self if not name.startswith(_CALIBRATED)]
        columns: dict[str, Sequence[Any]] = {
            "metric": names,
            "value": [self[name] for name in names],
        }
        if "temperature" in self:
            columns["calibrated"] = [self.get(f"{_CALIBRATED}{name}", math.nan) for name in names]
        return columns

    def __repr__(self) -> str:
        """The metrics, to four digits."""
        return in_line("Evaluation", {**self, **({"note": self.note} if self.note else {})})

    def to_dataframe(self) -> pd.DataFrame:
        """A row per metric; beside ``value`` it has ``calibrated`` at the temperature, if there is one.

        Raises:
            ImportError: if pandas is not installed.
        """
        return frame(self._columns(), "Evaluation").set_index("metric")


@checked
def regression_metrics(mean: Tensor, y: Tensor) -> dict[str, float]:
    r"""Root mean squared error :math:`\sqrt{\frac1N\sum_i (m_i - y_i)^2}`.

    Args:
        mean: predictive means.
        y: targets of the same shape, on any device.

    Raises:
        ShapeError: if the shapes differ.
        DataError: if values are not finite.
    """
    if mean.shape != y.shape:
        raise ShapeError(
            f"regression_metrics: mean and y must have one shape, got {tuple(mean.shape)} and "
            f"{tuple(y.shape)}."
        )
    y = y.to(mean.device)
    if not bool(mean.isfinite().all() & y.isfinite().all()):
        raise DataError("regression_metrics: mean and y must be finite.")
    return {"rmse": float((mean - y).square().mean().sqrt())}


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
    progress: bool = True,
) -> Evaluation:
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
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The metrics by name. Of a posterior whose draws are all equal (a point) ``note`` says that its
        mutual information is identically 0.

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
        likelihoods[_CALIBRATED] = model.likelihood.tempered(temperature)
    scores: dict[str, list[Scores]] = {prefix: [] for prefix in likelihoods}
    with progress_bar("evaluate", num_batches(batches), show=progress) as bar:
        for batch, output in evaluated(members, batches, done=bar.advance):
            y, weight = batch.targets("evaluate")
            for prefix, likelihood in likelihoods.items():
                scores[prefix].append(likelihood.scores(output, y, weight))
    metrics = Evaluation(
        (f"{prefix}{name}", value)
        for prefix, parts in scores.items()
        for name, value in Scores.join(parts).metrics().items()
    )
    if calibrate_on is not None:
        metrics["temperature"] = temperature
    if len(members) == 1 and members[0][1].are_equal:
        metrics.note = _POINT
    return metrics


def _temperature(model: NormalizationModel, evaluated: Iterable[tuple[MiniBatch, Tensor]]) -> float:
    predictions, targets = [], []
    for batch, output in evaluated:
        y, weight = batch.targets("evaluate, calibrate_on")
        if weight is not None:
            raise DataError("evaluate: calibrate_on takes pairs (x, y), without weights.")
        predictions.append(model.likelihood.predict(output))
        targets.append(y)
    return fit_temperature(Prediction.join(predictions), torch.cat(targets))
