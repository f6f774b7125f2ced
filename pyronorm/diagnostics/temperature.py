"""One number fitted on held-out data: the temperature of a predictive distribution."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyronorm.arrays import Array, to_tensor
from pyronorm.checks import checked
from pyronorm.devices import move
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError
from pyronorm.likelihoods import Likelihood, Prediction
from pyronorm.likelihoods.mixture import unwrap
from pyronorm.stats.search import minimize_positive

__all__ = ["CrossFit", "cross_fit", "fit_temperature"]

_LOW, _HIGH = 1e-3, 1e4
_STEPS = 20  # from the temperature of all data to half and to twice of it, for those of parts
_REMEDY = (
    "All of them may be predicted right, or none better than by chance. Take more held-out data, or "
    "set it yourself."
)


@torch.no_grad()
@checked
def fit_temperature(prediction: Prediction, y: Array) -> float:
    r"""Fit a temperature to held-out data by maximum likelihood.

    Minimizes :math:`-\sum_i \log \frac1S\sum_s p_T(y_i | x_i, z_s)` over ``T``, where :math:`p_T` is the
    likelihood at a temperature (:meth:`pyronorm.likelihoods.Likelihood.tempered`): logits divided by
    ``T`` for classes, noise ``T`` times as wide for real values. Every value has a mixture of its
    own, also where an example has several, such as pixels. For one draw of classes the objective is
    convex in ``1/T``; for one draw and normal noise :math:`T \sigma` is the root mean squared error.

    Args:
        prediction: for the held-out data, with its outputs, of any method.
        y: their targets; missing ones don't count.

    Returns:
        ``T``. Use it by ``prediction.tempered(T)`` on the predictions for the test data, or for good
        with a model of ``model.likelihood.tempered(T)``.

    Raises:
        OptionError: if the prediction has no outputs, or its likelihood no temperature.
        ShapeError: if ``y`` does not fit.
        DataError: if ``y`` are impossible, or determine no temperature: the likelihood grows
            as ``T`` goes to 0 where all are predicted right, and to infinity where none is better
            than by chance.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017); for
    the width of noise around several draws Gal & Ghahramani (ICML 2016), eq. 8.

    Departs from the papers: with several draws each is scaled, and their average fitted.
    """
    likelihood, outputs = prediction.likelihood, prediction.outputs
    if outputs is None:
        raise OptionError(
            "fit_temperature: the prediction has no outputs; predict with keep_samples=True."
        )
    y = move(to_tensor(y), outputs.device)
    outputs = outputs.double()
    likelihood.check_data(y, outputs, 1)
    present = likelihood.present(y)
    if not bool(present.any()):
        raise DataError("fit_temperature: there are no examples, or all values are missing.")
    outputs, y = outputs[:, present], y[present]
    likelihood = copy.deepcopy(likelihood).double()

    def nll(temperature: float) -> float:
        return -float(_log_density(likelihood, outputs, y, temperature).mean())

    return minimize_positive(nll, _LOW, _HIGH, "fit_temperature", _REMEDY)


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class CrossFit:
    """Temperatures for folds of held-out data, each fitted to the other folds.

    Attributes:
        temperature: fitted to all of the data.
        by_fold: what is best for the data without each fold.
        raw: log predictive density of each example without a temperature, in nats per value.
        densities: at the temperatures of the folds, ``(fold, example)``.
        cross_fitted: at the temperature of the example's own fold, which has not seen it.
    """

    temperature: float
    by_fold: tuple[float, ...]
    raw: Tensor
    densities: Tensor
    cross_fitted: Tensor


@torch.no_grad()
def cross_fit(
    prediction: Prediction, y: Tensor, folds: Tensor, *, undetermined: float | None = None
) -> CrossFit:
    """Fit temperatures to the data without each fold.

    They are sought between half and twice the temperature of all data, in steps of 3.5 %: the density
    changes in second order only between two of them, and a fold's data of which all are predicted right
    do not drive the temperature to 0.

    Args:
        prediction: for examples that all have values.
        y: their targets.
        folds: the fold of each example, ``(example,)``, from 0.
        undetermined: the temperature where the data determine none; None to refuse.

    Raises:
        DataError: if the data determine no temperature, and there is no other.
    """
    outputs = prediction.outputs
    assert outputs is not None
    outputs, likelihood = outputs.double(), copy.deepcopy(prediction.likelihood).double()
    steps = _STEPS
    try:
        best = fit_temperature(prediction, y)
    except DataError:
        if undetermined is None:
            raise
        best, steps = undetermined, 0

    def log_density(temperature: float) -> Tensor:
        values = _log_density(likelihood, outputs, y, temperature)
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    grid = [best * 2 ** (step / _STEPS) for step in range(-steps, steps + 1)]
    densities = torch.stack([log_density(temperature) for temperature in grid])
    number = int(folds.max()) + 1
    chosen = [int(densities[:, folds != k].mean(1).argmax()) for k in range(number)]
    by_fold = densities[chosen]
    own = by_fold.gather(0, folds[None])[0]
    return CrossFit(best, tuple(grid[i] for i in chosen), log_density(1.0), by_fold, own)


def _log_density(likelihood: Likelihood, outputs: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Log predictive density of every value, ``(batch, *event)``; 0 where missing."""
    tempered = likelihood.tempered(temperature).double()
    distribution, filled = tempered.observe(outputs, y, 1)
    log_prob: Tensor = unwrap(distribution).log_prob(filled)
    return log_prob.logsumexp(0) - math.log(len(outputs))
