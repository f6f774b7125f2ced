"""Scores of predictions: for every example and value, then as metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal

from pyronorm.errors import DataError
from pyronorm.likelihoods.missing import fill
from pyronorm.likelihoods.mixture import SEED, mixture_moments, mixture_samples, unwrap
from pyronorm.likelihoods.quantiles import below, marginal
from pyronorm.stats.classification import classification_metrics
from pyronorm.stats.crps import crps_normal_mixture, crps_samples

if TYPE_CHECKING:
    from pyronorm.likelihoods.base import Likelihood

__all__ = ["LEVELS", "Scores", "score"]

LEVELS = (0.5, 0.9, 0.95)
"""Levels of the central intervals whose coverage is reported."""

_SAMPLES = 1024  # for scores that have no closed form


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the values that are observed, which batches can be joined of.

    Attributes:
        values: by name, one per example (``log_prob``) or per value (all others).
    """

    values: Mapping[str, Tensor]

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of several batches as one.

        Raises:
            DataError: if there are none.
        """
        if not parts:
            raise DataError("data: there is no batch.")
        names = parts[0].values
        return cls({name: torch.cat([part.values[name] for part in parts]) for name in names})

    def metrics(self) -> dict[str, float]:
        r"""The metrics that the scores are enough for.

        * ``nll``: mean over examples of :math:`-\log\frac1S\sum_s p(y_i|x_i,z_s)`, in nats.
        * ``nll_per_position``, where an example has several values: mean over all values of the
          negative log density of each under its own mixture. Draws are shared by the values of an
          example, so with several draws it is not ``nll`` over their number.
        * of classes and binary values: ``accuracy``, ``ece`` and ``brier``, see
          :func:`pyronorm.diagnostics.classification_metrics`; of ordered ones also ``rps``, the ranked
          probability score :math:`\sum_k (P(Y \le k) - [y \le k])^2`.
        * of real values and counts: ``rmse`` of the predictive mean, ``crps``, the continuous ranked
          probability score, and ``coverage_50``, ``_90`` and ``_95``, shares of values within
          central intervals of the predictive distribution.

        Missing values, and examples without any, don't count.

        Raises:
            DataError: if nothing is observed.
        """
        values = self.values
        if not values["log_prob"].numel():
            raise DataError("metrics: there are no examples, or all values are missing.")
        found = {"nll": -float(values["log_prob"].double().mean())}
        if "position_log_prob" in values:
            found["nll_per_position"] = -float(values["position_log_prob"].double().mean())
        if "probabilities" in values:
            of_classes = classification_metrics(values["probabilities"], values["classes"])
            found = {"accuracy": of_classes["accuracy"], **found}
            found |= {"ece": of_classes["ece"], "brier": of_classes["brier"]}
        if "squared_error" in values:
            found["rmse"] = math.sqrt(float(values["squared_error"].double().mean()))
        for name in ("rps", "crps", *(_coverage(level) for level in LEVELS)):
            if name in values:
                found[name] = float(values[name].double().mean())
        return found


def score(likelihood: Likelihood, output: Tensor, y: Tensor) -> Scores:
    """Score outputs of several draws; see :meth:`pyronorm.likelihoods.Likelihood.scores`."""
    distribution, filled = likelihood.observe(output, y, 1)
    observed = likelihood.observed(y)
    mask = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
    event = len(distribution.event_shape)
    present = mask.flatten(1).any(1) if event else mask
    draws = math.log(len(output))
    joint = torch.logsumexp(distribution.log_prob(filled), 0) - draws
    found = {"log_prob": joint[present]}
    single = unwrap(distribution).log_prob(filled)
    vector = len(unwrap(distribution).event_shape)
    position = mask.flatten(mask.ndim - vector).any(-1) if vector else mask
    if math.prod(single.shape[2:]) > 1:
        found["position_log_prob"] = (torch.logsumexp(single, 0) - draws)[position]
    plain = likelihood.distribution(output, 1)
    return Scores(found | _of_values(plain, fill(plain, y, mask), mask, likelihood.ordered))


def _of_values(
    distribution: Distribution, y: Tensor, mask: Tensor, ordered: bool
) -> dict[str, Tensor]:
    """Scores that the kind of data allows, of the values where ``mask`` is."""
    base = unwrap(distribution)
    if isinstance(base, (Categorical, Bernoulli)):
        p = base.probs.mean(0)
        if isinstance(base, Bernoulli):
            p = torch.stack([1 - p, p], -1)
        p, classes = p[mask], y[mask].long()
        found = {"probabilities": p, "classes": classes}
        if ordered:
            steps = torch.arange(p.shape[-1], device=p.device) >= classes[:, None]
            found["rps"] = (p.cumsum(-1) - steps.to(p.dtype)).square().sum(-1)
        return found
    mean, _ = mixture_moments(distribution)
    y = y.to(mean.dtype)
    found = {"squared_error": (mean - y)[mask].square()}
    one = marginal(distribution)
    if one is None:
        return found
    if isinstance(one, Normal):
        crps = crps_normal_mixture(one.loc, one.scale, y)
    else:
        crps = crps_samples(mixture_samples(distribution, _SAMPLES, SEED).to(y.dtype), y)
    at, under = below(distribution, y)
    found["crps"] = crps[mask]
    for level in LEVELS:
        tail = (1 - level) / 2
        found[_coverage(level)] = ((at >= tail) & (under < 1 - tail))[mask]
    return found


def _coverage(level: float) -> str:
    return f"coverage_{100 * level:g}"
