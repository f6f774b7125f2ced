"""Moments and entropies of an equal mixture: the distributions of several draws, averaged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from pyronorm.randomness import seeded
from pyronorm.stats.mixture import mixture_entropy

__all__ = [
    "conditional_mean",
    "entropies",
    "mixture_moments",
    "mixture_samples",
    "support_in_words",
    "unwrap",
]

SEED = 0x6E6F726D
"""The fixed seed. Not 0: a network drawn from the same numbers would correlate with the samples."""

_POINTS = 1024  # at which the density of a mixture is looked at, where there is no closed form
_VALUES = 512  # of a count that are summed over
_ELEMENTS = 2**24  # of the largest intermediate result


def unwrap(distribution: Distribution) -> Any:
    """The distribution of a single value: without the event axes that independence made."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def support_in_words(distribution: Distribution) -> str:
    """Which values a single one may have, for messages."""
    constraint: Any = distribution.support
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return str(constraint)


def conditional_mean(distribution: Distribution) -> Tensor:
    """Mean of a single value; the probabilities for classes, on a last axis.

    Where the distribution does not know its mean, that of 1024 samples from a fixed seed.
    """
    base = unwrap(distribution)
    if isinstance(base, Categorical):
        return base.probs
    try:
        return base.mean  # type: ignore[no-any-return]
    except NotImplementedError:
        return _sampled_moments(base)[0]


def mixture_moments(distribution: Distribution) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of the mixture over the first axis.

    :math:`\mathrm{Var}\,y = \frac1S\sum_s \sigma_s^2 + \mathrm{Var}_s\,m_s`, biased over draws. For
    classes the mean are probabilities and the variances those of the indicators.
    """
    base = unwrap(distribution)
    if isinstance(base, (Categorical, Bernoulli)):
        mean = base.probs.mean(0)
        return mean, mean * (1 - mean)
    try:
        means, variances = base.mean, base.variance
    except NotImplementedError:
        means, variances = _sampled_moments(base)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def entropies(distribution: Distribution) -> tuple[Tensor, Tensor]:
    r"""Entropy of the mixture over the first axis, and mutual information of value and draw.

    The information is :math:`I = \frac1S\sum_s \mathbb E_{p_s} \log \frac{p_s(y)}{q(y)}`, the entropy
    :math:`\frac1S\sum_s H(p_s) + I`. Exact for classes, binary values and others of finite support, and
    to 1e-6 for counts that rarely exceed 512; by Gauss-Hermite quadrature for normal distributions of
    one width. Otherwise the expectations are means over 1024 samples from a fixed seed, spread
    over the draws, and :math:`H(p_s)` is closed form where the distribution has one.

    Returns:
        Both in nats, of the shape of a single value: per example and output position.
    """
    base = unwrap(distribution)
    if isinstance(base, Categorical):
        return _of_probabilities(base.probs)
    if isinstance(base, Bernoulli):
        return _of_probabilities(torch.stack([1 - base.probs, base.probs], -1))
    if isinstance(base, Normal) and bool((base.scale == base.scale[:1]).all()):
        std = base.scale[0]
        entropy = mixture_entropy(base.loc, std)
        noise = std.log() + 0.5 * (1 + math.log(2 * math.pi))
        return entropy, (entropy - noise).clamp(min=0)
    values = _all_values(base)
    if values is not None:
        return _of_probabilities(base.log_prob(values).exp().movedim(0, -1))
    return _sampled_entropies(base)


def mixture_samples(distribution: Distribution, num: int, seed: int) -> Tensor:
    """Samples of the mixture from a fixed seed, as many of each draw.

    Args:
        distribution: with the draws on the first batch axis.
        num: how many at least; there is one of each draw, unless there are more draws than that, of
            which as many are taken evenly.
        seed: the seed.

    Returns:
        Shape ``(sample, *batch, *event)``, without the axis of draws.
    """
    draws = distribution.batch_shape[0]
    with torch.no_grad(), seeded(seed, conditional_device(distribution)):
        samples = distribution.sample(torch.Size([math.ceil(num / draws)]))
    if draws > num:
        index = torch.linspace(0, draws - 1, num).round().long()
        samples = samples[:, index.to(samples.device)]
    return samples.flatten(0, 1)


def conditional_device(distribution: Distribution) -> torch.device:
    """Where a distribution's parameters lie."""
    base = unwrap(distribution)
    values = (value for value in vars(base).values() if isinstance(value, Tensor))
    return next((value.device for value in values), torch.device("cpu"))


def _of_probabilities(p: Tensor) -> tuple[Tensor, Tensor]:
    entropy = torch.special.entr(p.mean(0)).sum(-1)
    expected = torch.special.entr(p).sum(-1).mean(0)
    return entropy, (entropy - expected).clamp(min=0)


def _all_values(base: Any) -> Tensor | None:
    """All values of a finite support, or nearly all of counts; one per row, None if too many."""
    support = base.support
    if base.event_shape or not support.is_discrete:
        return None
    if base.has_enumerate_support:
        try:
            return base.enumerate_support(expand=False)  # type: ignore[no-any-return]
        except NotImplementedError:  # a binomial distribution of different numbers
            return None
    if getattr(support, "lower_bound", None) != 0:
        return None
    most = (base.mean + 12 * base.variance.sqrt()).max()
    if not bool(most < _VALUES - 32):
        return None
    values = torch.arange(int(most) + 32, device=most.device, dtype=most.dtype)
    return values.view(-1, *(1,) * len(base.batch_shape))


def _sampled_moments(base: Distribution) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), seeded(SEED, conditional_device(base)):
        samples = base.sample(torch.Size([_POINTS]))
    return samples.mean(0), samples.var(0)


def _sampled_entropies(base: Distribution) -> tuple[Tensor, Tensor]:
    draws = base.batch_shape[0]
    with torch.no_grad(), seeded(SEED, conditional_device(base)):
        y = base.sample(torch.Size([math.ceil(_POINTS / draws)]))
    own = base.log_prob(y)
    chosen = torch.arange(draws, device=y.device)
    if draws > _POINTS:
        chosen = torch.linspace(0, draws - 1, _POINTS, device=y.device).round().long()
    points = y[:, chosen].flatten(0, 1)
    rows = max(1, _ELEMENTS // max(1, own[0].numel()))
    parts = [torch.logsumexp(base.log_prob(p[:, None]), 1) for p in points.split(rows)]
    log_q = torch.cat(parts) - math.log(draws)
    information = (own[:, chosen].flatten(0, 1) - log_q).mean(0).clamp(min=0)
    try:
        expected = base.entropy().mean(0)
    except NotImplementedError:
        expected = -own.mean((0, 1))
    return expected + information, information
