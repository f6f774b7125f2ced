"""How good the uncertainty of a regression is, apart from its predictive mean."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.diagnostics import crps_normal_mixture

__all__ = ["fit_noise", "optimal_crps", "optimal_pll", "regression_scores"]

# Standard deviations of the noise, over the RMSE on the validation data. The programs of the
# Monte-Carlo batch normalization paper bound its precision in about the same way.
_LEAST, _MOST = 0.1, 3.0
_SMALLEST = 1e-12  # error: its logarithm has to be finite
_NORMAL_90 = 1.6448536269514722


def fit_noise(loss: Callable[[float], float], scale: float) -> float:
    """The noise between a tenth and three times a scale where a loss is least.

    A grid on the log scale, then finer ones around its best value; unlike a maximum-likelihood fit it
    may end at the least or the most, where the draws of the latents scatter more than the errors.

    Args:
        loss: of a standard deviation of the noise.
        scale: positive, such as the RMSE on validation data.
    """
    low, high = math.log(_LEAST * scale), math.log(_MOST * scale)
    for _ in range(4):
        grid = [low + (high - low) * k / 20 for k in range(21)]
        best = min(range(21), key=lambda k: loss(math.exp(grid[k])))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 20)]
    return math.exp(grid[best])


def optimal_pll(error: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    r"""Log density at the target if each example had the variance that is best for it.

    :math:`\max_\sigma \log\mathcal N(e; 0, \sigma^2) = -\frac12\log(2\pi\mathrm e\,e^2)`, at
    :math:`\sigma = |e|`.

    Args:
        error: target minus predictive mean.
    """
    e = error.abs().clamp(min=_SMALLEST)
    return -e.log() - (1 + math.log(2 * math.pi)) / 2


def optimal_crps(error: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    r"""Continuous ranked probability score if each example had the variance that is best for it.

    The derivative of the score of :math:`\mathcal N(0, \sigma^2)` at :math:`e` in :math:`\sigma`,
    :math:`2\varphi(e/\sigma) - \pi^{-1/2}`, vanishes at :math:`|e|/\sigma = \sqrt{\log 2}`; the score
    there is :math:`|e|\,(2\Phi(\sqrt{\log 2}) - 1) = 0.595\,|e|`.

    Args:
        error: target minus predictive mean.
    """
    return error.abs() * math.erf(math.sqrt(math.log(2) / 2))


def regression_scores(
    validation: Float[Tensor, "sample held_out"],
    y_validation: Float[Tensor, " held_out"],
    test: Float[Tensor, "sample example"],
    y: Float[Tensor, " example"],
    unit: float = 1.0,
) -> dict[str, float]:
    r"""Judge draws of a prediction after giving them Gaussian noise that suits the validation data.

    With draws :math:`f_s`, their mean :math:`m` and biased variance :math:`v`, and noise
    :math:`\sigma` with the least CRPS of :math:`\mathcal N(m, v + \sigma^2)` on the validation data:

    * ``pll``: mean of :math:`\log\frac1S\sum_s\mathcal N(y; f_s, \sigma^2)`, in nats.
    * ``crps``: mean CRPS of :math:`\mathcal N(m, v + \sigma^2)`.
    * ``rmse``: of :math:`m`.
    * ``coverage``, ``width``: of the central 90 % intervals of :math:`\mathcal N(m, v + \sigma^2)`.
    * ``pll_percent``, ``crps_percent``: the same scores, 0 for the mean :math:`m` with a constant
      variance (fitted to the validation data in the same way), 100 for :math:`m` with the variance
      that is best for each example (:func:`optimal_pll`, :func:`optimal_crps`).
    * ``pll_percent_likelihood``: the former with both noises fitted by likelihood instead of CRPS.

    Args:
        validation: predictions of each draw for the validation data.
        y_validation: its targets.
        test: predictions of the same draws for the test data.
        y: its targets.
        unit: what 1 of the predictions is in units of the target.

    Returns:
        The scores by name; all but the percentages in units of the target.

    Source: Teye, Azizpour & Smith (ICML 2018), section 4, and the authors' programs, where the
    baseline has the mean of the draws too: what is compared is the uncertainty alone.
    """
    mean, variance = _moments(validation)
    scale = float((y_validation - mean).square().mean().sqrt().clamp(min=_SMALLEST))

    def by_crps(variance: Tensor) -> float:
        return fit_noise(lambda s: _crps(mean, variance + s * s, y_validation), scale)

    def by_likelihood(draws: Tensor) -> float:
        return fit_noise(lambda s: -_pll(draws, s, y_validation), scale)

    noise, constant = by_crps(variance), by_crps(torch.zeros_like(variance))
    likely = by_likelihood(validation), by_likelihood(mean[None])
    mean, variance = _moments(test)
    error = y - mean
    std = (variance + noise**2).sqrt()
    middle = mean[None]
    pll, crps = _pll(test, noise, y), _crps(mean, std.square(), y)
    best_pll, best_crps = float(optimal_pll(error).mean()), float(optimal_crps(error).mean())
    base_crps = _crps(mean, torch.full_like(mean, constant**2), y)
    return {
        "rmse": unit * float(error.square().mean().sqrt()),
        "pll": pll - math.log(unit),
        "crps": unit * crps,
        "coverage": float((error.abs() <= _NORMAL_90 * std).double().mean()),
        "width": unit * 2 * _NORMAL_90 * float(std.mean()),
        "pll_percent": _percent(pll, _pll(middle, constant, y), best_pll),
        "pll_percent_likelihood": _percent(
            _pll(test, likely[0], y), _pll(middle, likely[1], y), best_pll
        ),
        "crps_percent": _percent(crps, base_crps, best_crps),
    }


def _percent(value: float, zero: float, hundred: float) -> float:
    return 100 * (value - zero) / (hundred - zero)


def _moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    return draws.mean(0), draws.var(0, correction=0)


def _crps(mean: Tensor, variance: Tensor, y: Tensor) -> float:
    return float(crps_normal_mixture(mean[None], variance.sqrt()[None], y).mean())


def _pll(draws: Tensor, noise: float, y: Tensor) -> float:
    density = (-((y - draws) / noise).square() / 2).logsumexp(0)
    constant = math.log(len(draws)) + math.log(noise) + math.log(2 * math.pi) / 2
    return float(density.mean()) - constant
