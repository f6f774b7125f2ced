"""Pyro's estimators of the ELBO, with a loss that stays on its device.

Pyro reads the loss on the host in every step, several times, which on a GPU waits until everything
before it is done. Losses and gradients here are those of Pyro.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyronorm.laws.divergence import closed_form

__all__ = ["DeviceMeanFieldELBO", "DeviceTraceELBO"]


class _DeviceELBO(Trace_ELBO):
    """Negative ELBO whose value and gradient are one tensor.

    Args:
        options: of :class:`pyro.infer.ELBO`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.observed: Tensor | None = None
        """Of the last loss, the log density of the observed sites, without a gradient."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, to be differentiated.

        Args:
            model: a Pyro model.
            guide: its guide.
            args: arguments of both.
            kwargs: arguments of both.
        """
        parts, observed = [], []
        traces: Any = self._get_traces
        for model_trace, guide_trace in traces(model, guide, args, kwargs):
            if _is_reparameterized(guide_trace):
                loss = self._loss(model_trace, guide_trace)
            else:  # the gradient is that of another function, and Pyro knows which
                particle: Any = self._differentiable_loss_particle
                value, surrogate = particle(model_trace, guide_trace)
                loss = value + (surrogate - surrogate.detach())
            parts.append(loss / self.num_particles)
            observed.append(_observed(model_trace) / self.num_particles)
        self.observed = torch.stack(observed).sum() if len(observed) > 1 else observed[0]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    @abstractmethod
    def _loss(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        """The loss of one particle, all of whose latents are reparameterized."""


class DeviceTraceELBO(_DeviceELBO):
    """:class:`pyro.infer.Trace_ELBO`: densities of the draws."""

    def _loss(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        loss: Any = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
        return loss  # type: ignore[no-any-return]


class DeviceMeanFieldELBO(_DeviceELBO, TraceMeanField_ELBO):
    """:class:`pyro.infer.TraceMeanField_ELBO`: KL divergences in closed form where there are some."""

    def _loss(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        prior, guide = _sites(model_trace), _sites(guide_trace)
        loss: Any = 0.0
        for name, site in guide.items():
            divergence = _divergence(site, prior[name]) if name in prior else None
            if divergence is not None:
                loss = loss + divergence
            elif name in prior:
                loss = loss + site["log_prob_sum"] - prior[name]["log_prob_sum"]
            else:  # auxiliary
                loss = loss + site["log_prob_sum"]
        for name, site in prior.items():
            if name not in guide:  # observed
                loss = loss - site["log_prob_sum"]
        return loss  # type: ignore[no-any-return]


def _divergence(site: Any, prior: Any) -> Tensor | None:
    """KL divergence in closed form, None where there is none."""
    divergence = closed_form(site["fn"], prior["fn"])
    if divergence is None:
        return None
    weighted: Tensor = scale_and_mask(divergence, site["scale"], site["mask"])
    return weighted.sum()


def _sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites by name, without those of plates, whose density is 1."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def _observed(trace: poutine.Trace) -> Tensor:
    """The log density of the observed sites, as the loss counts it."""
    found = [trace.nodes[name]["log_prob_sum"].detach() for name in trace.observation_nodes]
    return torch.stack(found).sum() if len(found) != 1 else found[0]


def _is_reparameterized(trace: poutine.Trace) -> bool:
    return all(site["fn"].has_rsample for site in _sites(trace).values())
