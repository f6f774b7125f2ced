"""One number fitted on held-out data: the temperature of a predictive distribution."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.devices import move
from pyronorm.errors import DataError, OptionError
from pyronorm.likelihoods import Likelihood, Prediction
from pyronorm.likelihoods.mixture import unwrap
from pyronorm.stats.search import minimize_positive

__all__ = ["fit_temperature", "value_log_prob"]

_LOW, _HIGH = 1e-3, 1e4
_REMEDY = (
    "All of them may be predicted right, or none better than by chance. Take more held-out data, or "
    "set it yourself."
)


@torch.no_grad()
@checked
def fit_temperature(prediction: Prediction, y: Tensor) -> float:
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
    y = move(y, outputs.device)
    outputs = outputs.double()
    likelihood.check_data(y, outputs, 1)
    present = likelihood.present(y)
    if not bool(present.any()):
        raise DataError("fit_temperature: there are no examples, or all values are missing.")
    outputs, y = outputs[:, present], y[present]
    likelihood = copy.deepcopy(likelihood).double()

    def nll(temperature: float) -> float:
        log_prob = value_log_prob(likelihood.tempered(temperature).double(), outputs, y)
        return -float(log_prob.logsumexp(0).mean())

    return minimize_positive(nll, _LOW, _HIGH, "fit_temperature", _REMEDY)


def value_log_prob(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Tensor:
    """Log density of every value under every draw, ``(sample, batch, *event)``; 0 where missing."""
    distribution, filled = likelihood.observe(outputs, y, 1)
    return unwrap(distribution).log_prob(filled)  # type: ignore[no-any-return]
