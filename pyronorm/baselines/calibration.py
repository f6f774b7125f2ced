"""One number fitted on held-out data: a temperature for classes, a noise precision for real values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.baselines.search import minimize_positive
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods import Categorical, Normal, Prediction

__all__ = ["NoisePrecision", "Temperature", "fit_noise_precision", "fit_temperature"]

_HOTTEST = 100.0
_REMEDY = "All of them may be predicted right. Take more held-out data, or set it yourself."


@dataclass(frozen=True)
class Temperature:
    r"""Class probabilities with the logits divided by a temperature :math:`T`.

    Args:
        value: ``T`` > 0; above 1 predictions become less certain.

    Raises:
        OptionError: if ``value`` is not positive and finite.
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise OptionError(f"Temperature: must be positive and finite, got {self.value}.")

    def apply(self, prediction: Prediction) -> Prediction:
        r"""The prediction at this temperature.

        :math:`p \propto p_s^{1/T}` for each draw ``s``, then averaged: dividing logits by ``T`` is that.

        Args:
            prediction: of classes, with its samples.

        Raises:
            OptionError: if the prediction has no samples.
        """
        # The class axis of logits is the one after the batch.
        missing = prediction.likelihood.ignore_index
        return Categorical(ignore_index=missing).predict(self._log(prediction).movedim(-1, 2))

    def _log(self, prediction: Prediction) -> Tensor:
        p = _samples(prediction, "Temperature")
        return (p.clamp(min=torch.finfo(p.dtype).tiny).log() / self.value).log_softmax(-1)


def fit_temperature(prediction: Prediction, y: Int[Tensor, "*batch"]) -> Temperature:
    r"""Fit a temperature to held-out data by maximum likelihood.

    Minimizes :math:`-\sum_i \log \frac1S\sum_s p_{is}(y_i)`, :math:`p_{is} \propto p_{is}^{1/T}`, over
    ``T`` between 0.01 and 100. For one draw the logarithm is convex in ``1/T``.

    Args:
        prediction: for the held-out data, with its samples, of any method.
        y: their classes; missing ones don't count.

    Returns:
        The temperature; :meth:`Temperature.apply` it to the predictions for the test data.

    Raises:
        OptionError: if the prediction has no samples.
        ShapeError: if ``y`` does not fit.
        DataError: if ``y`` are no classes, or determine no temperature (all predicted right: the
            likelihood grows as ``T`` goes to 0).

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017).

    Departs from the paper: with several draws each is scaled, and their average fitted.
    """
    p = _samples(prediction, "fit_temperature")
    if p.ndim < 3 or p.shape[1:-1] != y.shape:
        raise ShapeError(
            f"fit_temperature: predictions of shape {tuple(p.shape[1:])} need y of shape "
            f"{tuple(p.shape[1:-1])}, got {tuple(y.shape)}."
        )
    y = y.to(p.device)
    observed = prediction.likelihood.observed(y)
    if observed is not None:
        p, y = p[:, observed], y[observed]
    if y.numel() == 0 or not bool(((y >= 0) & (y < p.shape[-1])).all()):
        raise DataError(f"fit_temperature: y must be classes from 0 to {p.shape[-1] - 1}.")
    log = p.clamp(min=torch.finfo(p.dtype).tiny).double().log()
    index = y.to(log.device).long().expand(log.shape[:-1])[..., None]

    def nll(temperature: float) -> float:
        scaled = (log / temperature).log_softmax(-1).gather(-1, index)
        return -float(scaled.logsumexp(0).mean())

    return Temperature(minimize_positive(nll, 1 / _HOTTEST, _HOTTEST, "fit_temperature", _REMEDY))


@dataclass(frozen=True)
class NoisePrecision:
    r"""Gaussian noise of one precision :math:`\tau` around the predicted values.

    Args:
        value: :math:`\tau = 1/\sigma^2` > 0, in the units of :math:`y^{-2}`.

    Raises:
        OptionError: if ``value`` is not positive and finite.
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise OptionError(f"NoisePrecision: must be positive and finite, got {self.value}.")

    @property
    def std(self) -> float:
        """The noise, in the units of ``y``."""
        return 1 / math.sqrt(self.value)

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction with this noise.

        Args:
            prediction: of a :class:`~pyronorm.likelihoods.Normal` likelihood, with its samples.

        Raises:
            OptionError: if the prediction has no samples.
        """
        samples = _samples(prediction, "NoisePrecision")
        return Normal(self.std).to(samples).predict(samples)


def fit_noise_precision(prediction: Prediction, y: Float[Tensor, "*batch"]) -> NoisePrecision:
    r"""Fit the precision of the noise to held-out data by maximum likelihood.

    Maximizes :math:`\sum_i \log \frac1S\sum_s \mathcal N(y_i; f_{is}, \tau^{-1})`. For one draw that
    is one over the mean squared error.

    Args:
        prediction: for the held-out data, with its samples.
        y: their targets; missing ones (NaN) don't count.

    Returns:
        The precision; :meth:`NoisePrecision.apply` it to the predictions for the test data.

    Raises:
        OptionError: if the prediction has no samples.
        ShapeError: if ``y`` does not fit.
        DataError: if there are no data, they are not finite, or determine no precision.

    Source: Gal & Ghahramani (ICML 2016), eq. 8; Teye et al. (ICML 2018), section 4.

    Departs from the papers: maximum likelihood in one dimension; Teye et al. minimize the CRPS.
    """
    f = _samples(prediction, "fit_noise_precision").double()
    if f.shape[1:] != y.shape:
        raise ShapeError(
            f"fit_noise_precision: predictions and y must have one shape, got {tuple(f.shape[1:])} and "
            f"{tuple(y.shape)}."
        )
    y = y.to(f)
    squares = (y - f).square().masked_fill(y.isnan(), 0).reshape(*f.shape[:2], -1)
    counts = (~y.isnan()).reshape(len(y), -1).sum(1).double()
    mean = float(squares.sum() / (len(f) * counts.sum()))
    if not 0 < mean < math.inf:
        raise DataError(
            f"fit_noise_precision: the mean squared error is {mean}; it must be positive and finite."
        )
    outputs, squares = float(counts.mean()), squares.sum(2)

    def nll(std: float) -> float:
        mixture = (-squares / (2 * std * std)).logsumexp(0).mean()
        return outputs * math.log(std) - float(mixture)

    # Draws that are nearer weigh more, so the noise is at most that of all draws alike.
    most = math.sqrt(mean)
    std = minimize_positive(nll, 1e-4 * most, 2 * most, "fit_noise_precision", _REMEDY)
    return NoisePrecision(1 / (std * std))


def _samples(prediction: Prediction, where: str) -> Tensor:
    if prediction.samples is None:
        raise OptionError(
            f"{where}: the prediction has no samples; predict with keep_samples=True."
        )
    return prediction.samples
