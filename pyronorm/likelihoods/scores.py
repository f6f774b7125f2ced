"""Scores of predictions: for every example and value, then as metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal

from pyronorm.display import displayed
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


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of the values that are observed, which batches can be joined of.

    Attributes:
        values: by name, one per example (``log_prob``) or per value (all others).
        weights: by the same names, how often each counts; empty if all count once.
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of several batches as one.

        Raises:
            DataError: if there are none.
        """
        if not parts:
            raise DataError("data: there is no batch.")
        if len({bool(part.weights) for part in parts}) > 1:
            raise DataError("data: either all batches have weights, or none.")
        return cls(
            {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
            {name: torch.cat([part.weights[name] for part in parts]) for name in parts[0].weights},
        )

    def metrics(self) -> dict[str, float]:
        r"""The metrics that the scores are enough for.

        * ``nll``: mean over examples of :math:`-\log\frac1S\sum_s p(y_i|x_i,z_s)`, in nats.
        * ``nll_per_position``, where an example has several values: mean over all values of the
          negative log density of each under its own mixture. Draws are shared by the values of an
          example, so with several draws it is not ``nll`` over their number.
        * of classes and binary values: ``accuracy``, ``ece``, ``brier`` and ``aurc``, see
          :func:`pyronorm.diagnostics.classification_metrics`; of ordered ones also ``rps``, the ranked
          probability score :math:`\sum_k (P(Y \le k) - [y \le k])^2`.
        * of real values and counts: ``rmse`` of the predictive mean, ``crps``, the continuous ranked
          probability score, and ``coverage_50``, ``_90`` and ``_95``, shares of values within
          central intervals of the predictive distribution.

        Missing values, and examples without any, don't count; with weights all means are weighted.

        Raises:
            DataError: if nothing is observed, or counts.
        """
        values = self.values
        weights = self.weights.get("log_prob", values["log_prob"].new_ones(1))
        if not values["log_prob"].numel() or not bool(weights.any()):
            raise DataError(
                "metrics: there are no examples, or all values are missing or count for nothing."
            )
        found = {"nll": -self._mean("log_prob")}
        if "position_log_prob" in values:
            found["nll_per_position"] = -self._mean("position_log_prob")
        if "probabilities" in values:
            of_classes = classification_metrics(
                values["probabilities"], values["classes"], self.weights.get("classes")
            )
            found = {"accuracy": of_classes["accuracy"], **found}
            found |= {name: of_classes[name] for name in ("ece", "brier", "aurc")}
        if "squared_error" in values:
            found["rmse"] = math.sqrt(self._mean("squared_error"))
        for name in ("rps", "crps", *(_coverage(level) for level in LEVELS)):
            if name in values:
                found[name] = self._mean(name)
        return found

    def _mean(self, name: str) -> float:
        values = self.values[name].double()
        if not self.weights:
            return float(values.mean())
        weights = self.weights[name].double()
        return float((values * weights).sum() / weights.sum())


def score(
    likelihood: Likelihood, output: Tensor, y: Tensor, weight: Tensor | None = None
) -> Scores:
    """Score outputs of several draws; see :meth:`pyronorm.likelihoods.Likelihood.scores`."""
    distribution, filled = likelihood.observe(output, y, 1)
    observed = likelihood.observed(y)
    mask = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
    event = len(distribution.event_shape)
    present = mask.flatten(1).any(1) if event else mask
    draws = math.log(len(output))
    joint = torch.logsumexp(distribution.log_prob(filled), 0) - draws
    found = {"log_prob": joint[present]}
    where = {"log_prob": present}
    single = unwrap(distribution).log_prob(filled)
    vector = len(unwrap(distribution).event_shape)
    position = mask.flatten(mask.ndim - vector).any(-1) if vector else mask
    if math.prod(single.shape[2:]) > 1:
        found["position_log_prob"] = (torch.logsumexp(single, 0) - draws)[position]
        where["position_log_prob"] = position
    plain = likelihood.distribution(output, 1)
    found |= _of_values(plain, fill(plain, y, mask), mask, likelihood.ordered)
    if weight is None:
        return Scores(found)
    weights = {}
    for name in found:
        chosen = where.get(name, mask)
        aligned = weight.to(chosen.device).reshape(-1, *(1,) * (chosen.ndim - 1))
        weights[name] = aligned.expand_as(chosen)[chosen]
    return Scores(found, weights)


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
