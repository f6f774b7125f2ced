"""Distribution functions and quantiles of an equal mixture over draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy import special
from torch import Tensor
from torch.distributions import (
    Binomial,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    transform_to,
)

from pyronorm.likelihoods.mixture import SEED, mixture_samples, unwrap

__all__ = ["below", "marginal", "mixture_quantiles"]

_SAMPLES = 4096  # where a distribution function is not known


def marginal(distribution: Distribution) -> Distribution | None:
    """The distribution of each single real value; None if a value is a vector that has none known."""
    base: Distribution = unwrap(distribution)
    if isinstance(base, (MultivariateNormal, LowRankMultivariateNormal)):
        return Normal(base.mean, base.variance.sqrt(), validate_args=False)
    return None if base.event_shape else base


def below(distribution: Distribution, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Probabilities :math:`P(Y \le y)` and :math:`P(Y < y)` under the mixture.

    Exact where torch or SciPy knows the distribution function, otherwise shares of 4096 samples
    from a fixed seed.

    Args:
        distribution: with the draws on the first batch axis.
        y: values, of the mixture's shape.
    """
    base = marginal(distribution)
    discrete = _is_discrete(unwrap(distribution))
    if base is not None:
        function = _cdf(base)
        if function is not None:
            at = function(y).mean(0)
            return at, function(y - 1).mean(0) if discrete else at
    samples = mixture_samples(distribution, _SAMPLES, SEED)
    at = (samples <= y).to(samples.dtype).mean(0)
    return at, (samples < y).to(samples.dtype).mean(0)


def mixture_quantiles(distribution: Distribution, q: Tensor) -> Tensor:
    r"""The smallest value with :math:`P(Y \le y) \ge q`, of each single value.

    By bisection where the distribution function is known, otherwise of 4096 samples.

    Args:
        distribution: with the draws on the first batch axis.
        q: levels between 0 and 1, of one axis.

    Returns:
        Shape ``(q, *batch, *event)``, without the axis of draws.
    """
    base = marginal(distribution)
    function = None if base is None else _cdf(base)
    if base is None or function is None:
        samples = mixture_samples(distribution, _SAMPLES, SEED).sort(0).values
        rank = (q * len(samples)).ceil().long().clamp(1, len(samples)) - 1
        return samples[rank.to(samples.device)]
    search = _integers if _is_discrete(base) else _reals
    centre, spread = _where(base)
    return torch.stack([search(function, float(level), centre, spread) for level in q])


def _is_discrete(base: Any) -> bool:
    return bool(base.support.is_discrete)


def _where(base: Distribution) -> tuple[Tensor, Tensor]:
    """About where the mixture lies, and how wide it is: where a search begins."""
    means, variances = base.mean, base.variance
    means = means.nan_to_num(0.0, 0.0, 0.0)
    spread = (variances.nan_to_num(1.0, 1.0, 1.0).mean(0) + means.var(0, correction=0)).sqrt()
    return means.mean(0), spread.clamp(min=1e-6)


def _reals(
    function: Callable[[Tensor], Tensor], level: float, centre: Tensor, spread: Tensor
) -> Tensor:
    low, high = centre - spread, centre + spread
    for _ in range(100):  # each time twice as far
        too_high, too_low = function(low).mean(0) > level, function(high).mean(0) < level
        if not bool((too_high | too_low).any()):
            break
        width = high - low
        low, high = (
            torch.where(too_high, low - width, low),
            torch.where(too_low, high + width, high),
        )
    for _ in range(64 if centre.dtype == torch.float64 else 40):
        middle = (low + high) / 2
        enough = function(middle).mean(0) >= level
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def _integers(
    function: Callable[[Tensor], Tensor], level: float, centre: Tensor, spread: Tensor
) -> Tensor:
    low = torch.full_like(centre, -1)
    high = (centre + spread).ceil().clamp(min=0)
    for _ in range(64):
        short = function(high).mean(0) < level
        if not bool(short.any()):
            break
        low, high = torch.where(short, high, low), torch.where(short, 2 * high + 1, high)
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        enough = function(middle).mean(0) >= level
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def _cdf(base: Any) -> Callable[[Tensor], Tensor] | None:
    r"""The function :math:`P(Y \le y)`, with an axis of draws in front; None if unknown."""
    if isinstance(base, StudentT):
        return lambda y: _scipy(special.stdtr, base.df, (y - base.loc) / base.scale)
    if isinstance(base, Poisson):
        return lambda y: torch.where(
            y < 0, 0.0, torch.special.gammaincc(y.clamp(min=0).floor() + 1, base.rate)
        )
    if isinstance(base, NegativeBinomial):
        return lambda y: _beta(base.total_count, y.floor() + 1, 1 - base.probs, y)
    if isinstance(base, Binomial):
        return lambda y: _beta(base.total_count - y.floor(), y.floor() + 1, 1 - base.probs, y)
    if base.has_enumerate_support and not isinstance(base, Independent):
        values = base.enumerate_support(expand=False)
        masses = base.log_prob(values).exp()
        return lambda y: torch.where(values <= y, masses, 0.0).sum(0)
    if base.support.is_discrete:
        return None
    low = getattr(base.support, "lower_bound", -torch.inf)
    high = getattr(base.support, "upper_bound", torch.inf)
    possible = transform_to(base.support)(torch.zeros_like(base.mean))
    try:
        base.cdf(possible)
    except NotImplementedError:
        return None

    def inside(y: Tensor) -> Tensor:
        below, above = y <= low, y >= high
        at = base.cdf(torch.where(below | above, possible, y))
        return torch.where(below, 0.0, torch.where(above, 1.0, at))

    return inside


def _beta(a: Tensor, b: Tensor, p: Tensor, y: Tensor) -> Tensor:
    """The regularized incomplete beta function, as a distribution function of counts ``y``."""
    inside = _scipy(special.betainc, a.clamp(min=1e-30), b.clamp(min=1e-30), p)
    return torch.where(y < 0, 0.0, torch.where(a <= 0, 1.0, inside))


def _scipy(function: Callable[..., Any], *arguments: Tensor) -> Tensor:
    like = arguments[-1]
    arrays = [argument.detach().double().cpu().numpy() for argument in arguments]
    return torch.as_tensor(function(*arrays)).to(like)
