"""Draws from what Pyro knows: any guide, an MCMC run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyronorm.errors import DataError, NoDensityError, OptionError, ShapeError
from pyronorm.infer.batch import split
from pyronorm.infer.data import Data, as_batches, evaluation_mode
from pyronorm.latents import Draws, LatentSpace
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed, seeded

__all__ = ["PyroGuide", "draws_of_mcmc"]


class PyroGuide:
    """Any Pyro guide as a posterior: an autoguide, an ``EasyGuide``, a module, a function.

    The guide is traced in a plate of draws. Autoguides are wrapped by themselves wherever a posterior
    is expected.

    Args:
        guide: a trained Pyro autoguide, or a guide whose sites broadcast under a plate. A guide that is
            not an autoguide is called with the first batch of the data, ``guide(x, y)``, or without
            arguments where there are no data.

    Raises:
        OptionError: if it cannot be called.
    """

    def __init__(self, guide: Callable[..., Any]) -> None:
        if not callable(guide) or isinstance(guide, type):
            raise OptionError(f"PyroGuide: expected a Pyro guide, a callable, got {guide!r}.")
        self.guide = guide

    def __repr__(self) -> str:
        """Name the guide."""
        return f"PyroGuide({getattr(self.guide, '__name__', type(self.guide).__name__)})"

    @torch.no_grad()
    def draw(
        self,
        model: NormalizationModel,
        num_samples: int,
        *,
        data: Data | None = None,
        seed: Seed = None,
    ) -> Draws:
        """Draw from the guide.

        Args:
            model: the model that the guide approximates the posterior of.
            num_samples: number of draws.
            data: what a guide that is not an autoguide is called with: the first batch of these.
            seed: see :func:`pyronorm.randomness.seeded`.

        Returns:
            The draws and their log density, None for a guide that has none.

        Raises:
            OptionError: if an autoguide has not been trained, or the guide samples more than the
                latents.
            ShapeError: if the guide does not sample the model's latents.
        """
        guide = self.guide
        if num_samples < 1:
            raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
        if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
            raise OptionError(
                f"{type(guide).__name__} has not been trained: it does not know its sites before the "
                "first step. Train it, or call guide(x, y) once."
            )
        space, like = model.space, model.network.like
        # A module has its parameters itself; only a function looks them up in Pyro's global store.
        own = isinstance(guide, nn.Module)
        with (
            seeded(seed, like),
            evaluation_mode(model),
            pyro.get_param_store().scope() if own else nullcontext(),
            pyro.plate("_draws", num_samples, dim=-2),
        ):
            trace = poutine.trace(guide).get_trace(*self._arguments(data))
        sites = _sites(trace)
        values = []
        for site in (space.shift_site, space.scale_site):
            value = sites[site]["value"] if site in sites else None
            if value is None:
                raise ShapeError(f"the guide does not sample the site {site!r} of the model.")
            expected = (num_samples, 1, space.num_channels)
            if value.shape != expected:
                raise ShapeError(
                    f"the guide's site {site!r} has shape {tuple(value.shape)} for {num_samples} "
                    f"draws, expected {expected}: is it a guide of this model?"
                )
            values.append(value.squeeze(1))
        hyperprior = model.prior.law(space, like).hyper
        hyper = {name: sites[name]["value"].squeeze(1) for name in hyperprior if name in sites}
        _refuse_others(sites, {space.shift_site, space.scale_site, *hyperprior})
        draws = Draws(values[0], values[1], _log_density(trace, num_samples), hyper)
        return draws.to(like)

    def _arguments(self, data: Data | None) -> tuple[Any, ...]:
        if isinstance(self.guide, AutoGuide) or data is None:
            return ()
        for batch in as_batches(data):
            return split(batch).arguments()
        raise DataError("data: there is no batch.")


def draws_of_mcmc(mcmc: MCMC, space: LatentSpace) -> Draws:
    """All draws of a finished Pyro MCMC run, with what diverged.

    Raises:
        OptionError: if it did not sample the latents of ``space``, or has not run.
    """
    try:
        samples = dict(mcmc.get_samples(group_by_chain=True))
    except (AttributeError, TypeError) as error:
        raise OptionError("the MCMC run has no samples: call its run() first.") from error
    for site in (space.shift_site, space.scale_site):
        if site not in samples:
            raise OptionError(f"the MCMC run has no site {site!r}; it has {list(samples)}.")
    shift, scale = samples.pop(space.shift_site), samples.pop(space.scale_site)
    diverging = torch.zeros(shift.shape[:2], dtype=torch.bool)
    if shift.shape[1] >= 4:  # Pyro's diagnostics need as many
        for chain, where in enumerate(mcmc.diagnostics().get("divergences", {}).values()):
            diverging[chain, [int(i) for i in where]] = True
    return Draws(
        shift.flatten(0, 1),
        scale.flatten(0, 1),
        hyper={name: value.flatten(0, 1) for name, value in samples.items()},
        num_chains=len(shift),
        stats={"diverging": diverging.flatten()},
    )


def _refuse_others(sites: dict[str, Any], ours: set[str]) -> None:
    others = [
        name
        for name, site in sites.items()
        if name not in ours and not (site["infer"] or {}).get("is_auxiliary")
    ]
    if others:
        raise OptionError(
            f"the guide samples {others} besides the latents {sorted(ours)}. pyronorm would predict "
            "with these drawn from their prior: use pyro.infer.Predictive(model, guide=guide), which "
            "replays every site."
        )


def _log_density(trace: poutine.Trace, num_samples: int) -> Tensor | None:
    sites = _sites(trace).values()
    # An autoguide draws auxiliary sites and states the latents as functions of them, as points with
    # the Jacobian for a density. Points that no auxiliary site stands behind have no density.
    auxiliary = [site for site in sites if (site["infer"] or {}).get("is_auxiliary")]
    points = [site for site in sites if isinstance(site["fn"], Delta)]
    if sum(s["value"].numel() for s in points) > sum(s["value"].numel() for s in auxiliary):
        return None
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
        if site["type"] == "sample" and not site_is_subsample(site)
    }
