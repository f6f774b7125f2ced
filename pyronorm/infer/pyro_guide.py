"""Draws from what Pyro knows: any guide, an MCMC run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide, AutoMessenger, AutoMultivariateNormal
from pyro.nn import PyroModule
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Independent

from pyronorm.checks import Count, checked
from pyronorm.devices import check_memory
from pyronorm.errors import DataError, NoDensityError, OptionError, ShapeError
from pyronorm.guides import Guide
from pyronorm.guides.base import TOO_MANY
from pyronorm.guides.spaces import refuse_other_space
from pyronorm.infer.batch import split
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.recorded import RECORDED
from pyronorm.latents import Draws
from pyronorm.latents.draws import check_draws
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed, seeded

__all__ = [
    "PyroGuide",
    "check_pyro_guide",
    "draws_of_mcmc",
    "is_pyro_guide",
    "own_values",
    "samples_of_mcmc",
    "stats_of_mcmc",
]


def is_pyro_guide(value: Any) -> bool:
    """Whether it is of one of the classes of guides that Pyro has."""
    theirs = isinstance(value, (AutoGuide, AutoMessenger, *_easy_guide()))
    return theirs and not isinstance(value, Guide)


def _easy_guide() -> tuple[type, ...]:
    """The class, if its module has been imported: nothing can be of it otherwise."""
    module = sys.modules.get("pyro.contrib.easyguide")
    return () if module is None else (module.EasyGuide,)


class PyroGuide:
    """Any Pyro guide as a posterior: an autoguide, an ``EasyGuide``, a module, a function.

    The guide is traced in a plate of draws; one draw at a time where it also samples sites of the
    network itself, such as weights with a prior of their own. Pyro's own guides are wrapped by
    themselves wherever a posterior is expected.

    Args:
        guide: a trained Pyro autoguide, or a guide whose sites broadcast under a plate. A guide that is
            not an ``AutoGuide`` is called with the first batch of the data, ``guide(x, y)``, or without
            arguments where there are no data.

    Raises:
        OptionError: if it cannot be called.
    """

    @checked
    def __init__(self, guide: Callable[..., Any]) -> None:
        if not callable(guide) or isinstance(guide, type):
            raise OptionError(f"PyroGuide: expected a Pyro guide, a callable, got {guide!r}.")
        self.guide = guide

    def __repr__(self) -> str:
        """Name the guide."""
        return f"PyroGuide({getattr(self.guide, '__name__', type(self.guide).__name__)})"

    @torch.no_grad()
    @checked
    def draw(
        self,
        model: NormalizationModel,
        num_samples: Count,
        *,
        data: Data | None = None,
        seed: Seed = None,
    ) -> Draws:
        """Draw from the guide.

        Args:
            model: the model that the guide approximates the posterior of.
            num_samples: number of draws.
            data: what a guide that is not an ``AutoGuide`` is called with: the first batch of these.
            seed: see :func:`pyronorm.randomness.seeded`.

        Returns:
            The draws, those of sites of the network's own among them, and their log density, None for
            a guide that has none.

        Raises:
            OptionError: if a guide of Pyro has not been trained.
            ShapeError: if the guide does not sample the model's latents.
            SizeError: if there is no memory for so many draws.
        """
        guide = self.guide
        _refuse_untrained(guide)
        check_pyro_guide(guide, model)
        space, like = model.space, model.network.like
        check_draws("PyroGuide", num_samples, space, like)
        hyperprior = set(model.prior.law(space, like).hyper)
        latents = (space.shift_site, space.scale_site)
        with (
            seeded(seed, like),
            evaluation_mode(model),
            evaluation_mode(guide) if isinstance(guide, nn.Module) else nullcontext(),
            own_values(guide),
        ):
            arguments = self._arguments(model, data)
            with seeded(0, like):  # what is drawn here counts for nothing
                names = _values(self._trace(arguments)).keys()
            others = names - {*latents, *hyperprior}
            if others:
                traces = [self._trace(arguments) for _ in range(num_samples)]
            else:
                with pyro.plate("_draws", num_samples, dim=-2):
                    traces = [self._trace(arguments)]
        parts = [_values(trace) for trace in traces]
        values = {n: torch.stack([p[n] for p in parts]) if others else parts[0][n] for n in names}
        expected = (num_samples, *(() if others else (1,)), space.num_channels)
        for site in latents:
            if site not in values:
                raise ShapeError(f"the guide does not sample the site {site!r} of the model.")
            if values[site].shape != expected:
                raise ShapeError(
                    f"the guide's site {site!r} has shape {tuple(values[site].shape)} for {num_samples} "
                    f"draws, expected {expected}: is it a guide of this model?"
                )
        if not others:
            values = {name: value.squeeze(1) for name, value in values.items()}
        densities = [_log_density(trace, num_samples // len(traces)) for trace in traces]
        known = [density for density in densities if density is not None]
        return Draws(
            values[space.shift_site],
            values[space.scale_site],
            torch.cat(known) if len(known) == len(densities) else None,
            {name: values[name] for name in hyperprior if name in values},
            others={name: values[name] for name in others},
        ).to(like)

    def _trace(self, arguments: tuple[Any, ...]) -> poutine.Trace:
        trace = poutine.trace(self.guide).get_trace(*arguments)
        if isinstance(self.guide, AutoMessenger):  # it runs the model, with its data
            trace = self.guide.get_traces()[1]
        return trace

    def _arguments(self, model: NormalizationModel, data: Data | None) -> tuple[Any, ...]:
        guide = self.guide
        if isinstance(guide, AutoGuide):  # those of the library, too
            return ()
        if data is None:
            if isinstance(guide, AutoMessenger):
                raise DataError(
                    f"{type(guide).__name__} runs the model when it draws, so it needs data: inputs x, "
                    "or pairs (x, y)."
                )
            return ()
        for batch in as_batches(data):
            found = split(batch)
            if isinstance(guide, AutoMessenger):
                found = found.to(model.network)
                if found.y is None:
                    with poutine.block():  # data not given would be one more latent site
                        found = found._replace(y=model(found.x))
            return found.arguments()
        raise DataError("data: there is no batch.")


def draws_of_mcmc(mcmc: MCMC, model: NormalizationModel) -> Draws:
    """All draws of a finished Pyro MCMC run, with what the sampler said of them.

    Raises:
        OptionError: if it did not sample the latents of ``model``, or has not run.
    """
    space = model.space
    samples = samples_of_mcmc(mcmc)
    for site in (space.shift_site, space.scale_site):
        if site not in samples:
            raise OptionError(f"the MCMC run has no site {site!r}; it has {list(samples)}.")
    shift, scale = samples.pop(space.shift_site), samples.pop(space.scale_site)
    hyper = model.prior.law(space, model.network.like).hyper
    flat = {name: value.flatten(0, 1) for name, value in samples.items()}
    return Draws(
        shift.flatten(0, 1),
        scale.flatten(0, 1),
        hyper={name: value for name, value in flat.items() if name in hyper},
        num_chains=len(shift),
        stats=stats_of_mcmc(mcmc, *shift.shape[:2]),
        others={name: value for name, value in flat.items() if name not in hyper},
    )


def samples_of_mcmc(mcmc: MCMC) -> dict[str, Tensor]:
    """The samples of a finished run by site, each ``(chain, draw, *site)``.

    Raises:
        OptionError: if it has not run.
    """
    try:
        return dict(mcmc.get_samples(group_by_chain=True))
    except (AttributeError, TypeError) as error:
        raise OptionError("the MCMC run has no samples: call its run() first.") from error


def stats_of_mcmc(mcmc: MCMC, chains: int, length: int) -> dict[str, Tensor]:
    """What a finished run says of each draw, each ``(chain * draw,)``.

    Args:
        mcmc: the run; a kernel :class:`~pyronorm.infer.RecordedNUTS` says more than Pyro's.
        chains: number of chains.
        length: draws per chain.
    """
    diverging = torch.zeros(chains, length, dtype=torch.bool)
    if length < 4:  # Pyro's diagnostics need as many
        return {"diverging": diverging.flatten()}
    diagnostics = mcmc.diagnostics()
    for chain, where in enumerate(diagnostics.get("divergences", {}).values()):
        diverging[chain, [int(i) for i in where]] = True
    recorded = {
        name: torch.as_tensor([list(one) for one in diagnostics[name].values()]).flatten()
        for name in RECORDED
        if name in diagnostics
    }
    return {"diverging": diverging.flatten(), **recorded}


def check_pyro_guide(guide: Any, model: NormalizationModel) -> None:
    """Refuse a guide of one of Pyro's classes that was made for a model with other latents.

    Raises:
        ShapeError: if layers or channels differ.
        SizeError: if it has a covariance matrix of all latents, and there is no memory for that.
    """
    size = 2 * model.space.num_channels
    if isinstance(guide, AutoMultivariateNormal):
        name = f"{type(guide).__name__} of {size:,} latents"
        check_memory(name, size * size, model.network.like, TOO_MANY)
    try:
        made_for = guide.model if is_pyro_guide(guide) else None
    except TypeError:  # a copy has lost it
        return
    while isinstance(made_for, partial):  # Pyro's handlers around it
        made_for = made_for.args[-1]
    if isinstance(made_for, NormalizationModel):
        refuse_other_space(type(guide).__name__, made_for.space, model.space)


def _refuse_untrained(guide: Any) -> None:
    """Refuse a guide of Pyro that does not know its sites yet."""
    if isinstance(guide, AutoMessenger):
        untrained = next(guide.parameters(), None) is None
    else:
        untrained = is_pyro_guide(guide) and guide.prototype_trace is None
    if untrained:
        raise OptionError(
            f"{type(guide).__name__} has not been trained: it does not know its sites before the "
            "first step. Train it; or call guide() once, and then guide.load_state_dict(state)."
        )


@contextmanager
def own_values(guide: Any) -> Iterator[None]:
    """Pyro's store without what it holds by the names of the parameters that a module has itself.

    Another guide of its class, with the same names, may have put that there, and a PyroModule would
    take it over. What a guide states by ``pyro.param`` is left.
    """
    if not isinstance(guide, nn.Module):
        yield
        return
    own = {
        f"{module._pyro_name}.{name}" if module._pyro_name else name
        for module in guide.modules()
        if isinstance(module, PyroModule)
        for name in module._pyro_params
    }
    store: Any = pyro.get_param_store()
    state = store.get_state()
    kept = {
        part: {name: value for name, value in values.items() if name not in own}
        for part, values in state.items()
    }
    with store.scope(kept):
        yield


def _is_point(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _log_density(trace: poutine.Trace, num_samples: int) -> Tensor | None:
    sites = _sites(trace).values()
    # An autoguide draws auxiliary sites and states the latents as functions of them, as points with
    # the Jacobian for a density. Points that no auxiliary site stands behind have no density.
    points = [site for site in sites if _is_point(site["fn"])]
    auxiliary = [
        site
        for site in sites
        if (site["infer"] or {}).get("is_auxiliary") and not _is_point(site["fn"])
    ]
    if sum(s["value"].numel() for s in points) > sum(s["value"].numel() for s in auxiliary):
        return None
    try:
        trace.compute_log_prob()
    except NoDensityError:
        return None
    terms = [site["log_prob"].reshape(num_samples, -1).sum(1) for site in sites]
    return torch.stack(terms).sum(0)


def _values(trace: poutine.Trace) -> dict[str, Tensor]:
    """The values that a guide gives to sites of a model."""
    return {
        name: site["value"]
        for name, site in _sites(trace).items()
        if not (site["infer"] or {}).get("is_auxiliary") and not site["is_observed"]
    }


def _sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites by name, without those of plates."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }
