"""Draws of the latents from any guide, with their log density."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from jaxtyping import Bool, Float
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyronorm.errors import DataError, NoDensityError, OptionError, ShapeError
from pyronorm.guides import Guide
from pyronorm.infer.data import Data, as_batches, evaluation_mode, split
from pyronorm.latents import LatentSpace
from pyronorm.model import NormalizationModel

__all__ = ["Chains", "Draws", "draw_latents", "draw_prior"]


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of the latents.

    Attributes:
        shift: shape ``(sample, channel)``.
        scale: shape ``(sample, channel)``.
        log_q: log density of each draw under the guide, shape ``(sample,)``; None where there is no
            density (a bank, a point).
        hyper: hyperparameters of the prior by site name, each of shape ``(sample, group)``; empty
            where the prior has none or the posterior does not know them (a bank).
    """

    shift: Float[Tensor, "sample channel"]
    scale: Float[Tensor, "sample channel"]
    log_q: Float[Tensor, " sample"] | None = None
    hyper: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of draws."""
        return len(self.shift)


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of several Markov chains.

    :func:`pyronorm.predict`, :func:`pyronorm.evaluate` and :func:`pyronorm.to_arviz` take them in
    place of a guide.

    Attributes:
        shift: shape ``(chain, draw, channel)``.
        scale: shape ``(chain, draw, channel)``.
        diverging: whether the trajectory of a draw diverged, shape ``(chain, draw)``.
        hyper: hyperparameters of the prior by site name, each of shape ``(chain, draw, group)``.
    """

    shift: Float[Tensor, "chain draw channel"]
    scale: Float[Tensor, "chain draw channel"]
    diverging: Bool[Tensor, "chain draw"]
    hyper: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, mcmc: MCMC, space: LatentSpace) -> Chains:
        """The chains of a finished Pyro MCMC run.

        Raises:
            OptionError: if it did not sample the latents of ``space``.
        """
        samples = dict(mcmc.get_samples(group_by_chain=True))
        for site in (space.shift_site, space.scale_site):
            if site not in samples:
                raise OptionError(f"the MCMC run has no site {site!r}; it has {list(samples)}.")
        shift = samples[space.shift_site]
        diverging = torch.zeros(shift.shape[:2], dtype=torch.bool)
        if shift.shape[1] >= 4:  # Pyro's diagnostics need as many
            for chain, where in enumerate(mcmc.diagnostics().get("divergences", {}).values()):
                diverging[chain, [int(i) for i in where]] = True
        scale = samples.pop(space.scale_site)
        shift = samples.pop(space.shift_site)
        return cls(shift, scale, diverging, samples)

    @classmethod
    def join(cls, parts: Sequence[Chains]) -> Chains:
        """All chains of several runs."""
        return cls(
            torch.cat([c.shift for c in parts]),
            torch.cat([c.scale for c in parts]),
            torch.cat([c.diverging for c in parts]),
            {name: torch.cat([c.hyper[name] for c in parts]) for name in parts[0].hyper},
        )

    def draws(self, num_samples: int | None = None) -> Draws:
        """The draws of all chains, or so many of them, evenly spaced.

        Raises:
            OptionError: if there are not that many.
        """
        shift, scale = self.shift.flatten(0, 1), self.scale.flatten(0, 1)
        hyper = {name: value.flatten(0, 1) for name, value in self.hyper.items()}
        if num_samples is None:
            return Draws(shift, scale, hyper=hyper)
        if not 1 <= num_samples <= len(shift):
            raise OptionError(f"num_samples must be between 1 and {len(shift)}, got {num_samples}.")
        index = torch.linspace(0, len(shift) - 1, num_samples).round().long().to(shift.device)
        hyper = {name: value[index] for name, value in hyper.items()}
        return Draws(shift[index], scale[index], hyper=hyper)


@torch.no_grad()
def draw_latents(
    model: NormalizationModel,
    guide: Callable[..., Any] | Chains,
    num_samples: int,
    data: Data | None = None,
) -> Draws:
    """Draw latents from a guide, or take so many draws of Markov chains, evenly spaced.

    Args:
        model: the model that the guide approximates the posterior of.
        guide: one of :mod:`pyronorm.guides`, a trained Pyro autoguide, or any Pyro guide whose sites
            broadcast under a plate; or chains of :func:`pyronorm.run_nuts`.
        num_samples: number of draws.
        data: a guide of your own is called with the first batch of these data, ``guide(x, y)``;
            guides of this library and autoguides need none.

    Returns:
        The draws and their log density.

    Raises:
        OptionError: if ``num_samples`` is below 1, or an autoguide has not been trained.
        ShapeError: if the guide does not sample the model's latents.
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    if isinstance(guide, Chains):
        return guide.draws(num_samples)
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise OptionError(
            f"{type(guide).__name__} has not been trained: it does not know its sites before the "
            "first step. Train it, or call guide(x, y) once."
        )
    space = model.space
    # A module has its parameters itself; only a function looks them up in Pyro's global store.
    own = isinstance(guide, (Guide, AutoGuide))
    with (
        evaluation_mode(model),
        pyro.get_param_store().scope() if own else nullcontext(),
        pyro.plate("_draws", num_samples, dim=-2),
    ):
        trace = poutine.trace(guide).get_trace(*_arguments(guide, data))
    values = []
    for site in (space.shift_site, space.scale_site):
        value = trace.nodes[site]["value"] if site in trace.nodes else None
        if value is None:
            raise ShapeError(f"the guide does not sample the site {site!r} of the model.")
        expected = (num_samples, 1, space.num_channels)
        if value.shape != expected:
            raise ShapeError(
                f"the guide's site {site!r} has shape {tuple(value.shape)} for {num_samples} draws, "
                f"expected {expected}: is it a guide of this model?"
            )
        values.append(value.squeeze(1))
    sites = _sites(trace)
    hyper = {
        site: sites[site]["value"].squeeze(1)
        for site in model.prior.hyperprior(space, model.network.like)
        if site in sites
    }
    return Draws(values[0], values[1], _log_density(trace, num_samples), hyper)


@torch.no_grad()
def draw_prior(model: NormalizationModel, num_samples: int) -> Draws:
    """Draw latents and hyperparameters from the model's prior.

    Args:
        model: the model.
        num_samples: number of draws.

    Returns:
        The draws; ``log_q`` is their log prior density.

    Raises:
        OptionError: if the prior is improper.
    """
    space, like = model.space, model.network.like
    with pyro.plate("_draws", num_samples, dim=-2):
        trace = poutine.trace(model.prior.sample).get_trace(space, like)
    values = {name: site["value"].squeeze(1) for name, site in _sites(trace).items()}
    shift, scale = values.pop(space.shift_site), values.pop(space.scale_site)
    return Draws(shift, scale, _log_density(trace, num_samples), values)


def _arguments(guide: Callable[..., Any], data: Data | None) -> tuple[Tensor, ...]:
    if isinstance(guide, (Guide, AutoGuide)) or data is None:
        return ()
    for batch in as_batches(data):
        return tuple(part for part in split(batch) if part is not None)
    raise DataError("data: there is no batch.")


def _log_density(trace: poutine.Trace, num_samples: int) -> Tensor | None:
    sites = _sites(trace).values()
    auxiliary = any((site["infer"] or {}).get("is_auxiliary") for site in sites)
    if not auxiliary and any(isinstance(site["fn"], Delta) for site in sites):
        return None  # a point has no density
    try:
        trace.compute_log_prob()
    except NoDensityError:
        return None
    terms = [site["log_prob"].reshape(num_samples, -1).sum(1) for site in sites]
    return torch.stack(terms).sum(0)


def _sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites by name, without those of plates."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }
