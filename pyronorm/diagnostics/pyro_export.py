"""Any Pyro model with its posterior, as ArviZ data: every site with the dimensions of its plates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import MCMC
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyronorm.diagnostics.arviz_labels import Coords, Dims, labelled, numpy_of
from pyronorm.diagnostics.arviz_versions import Groups, build
from pyronorm.errors import DataError, OptionError
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.pyro_guide import own_values, samples_of_mcmc, stats_of_mcmc
from pyronorm.latents import LatentSpace
from pyronorm.randomness import Seed, seeded

__all__ = ["export_pyro"]

_Sites = dict[str, Any]


def export_pyro(
    model: Callable[..., Any],
    posterior: Any,
    arguments: tuple[Any, ...],
    num_samples: int | None,
    *,
    prior_predictive: bool = False,
    coords: Coords | None = None,
    dims: Dims | None = None,
    seed: Seed = None,
) -> Any:
    """What :func:`pyronorm.to_arviz` does for a Pyro model that is no NormalizationModel.

    Args:
        model: a Pyro model.
        posterior: a Pyro guide for it, or a finished MCMC run.
        arguments: what model and guide are called with.
        num_samples: number of draws; None for 200, or all of an MCMC run.
        prior_predictive: whether to run the model without the posterior as well.
        coords: labels of the user's by dimension.
        dims: dimensions of the user's by variable.
        seed: for the draws.

    Raises:
        OptionError: if the posterior is neither, or does not have all latent sites of the model.
        DataError: if the shapes of sites change from draw to draw.
    """
    _check_call(model, arguments)
    with torch.no_grad(), seeded(seed), ExitStack() as stack:
        for module in (model, posterior):
            if isinstance(module, nn.Module):
                stack.enter_context(evaluation_mode(module))
        draws, chains, stats = _draws(posterior, arguments, num_samples)
        traces = []
        predictions: list[_Sites] = []
        for values in draws:
            given = poutine.condition(model, values)
            traces.append(_sites(poutine.trace(given).get_trace(*arguments)))
            predictions.append(_sites(poutine.trace(_free(model, values)).get_trace(*arguments)))
        free = poutine.uncondition(model)
        prior = [
            _sites(poutine.trace(free).get_trace(*arguments))
            for _ in range(len(draws) if prior_predictive else 0)
        ]
    first = traces[0]
    latent = [n for n, site in first.items() if not _is_data(site, draws[0])]
    missing = [name for name in latent if name not in draws[0]]
    if missing:
        raise OptionError(
            f"to_arviz: the posterior has no values for the sites {missing} of the model; it has "
            f"{sorted(draws[0])}."
        )
    groups: Groups = {"posterior": _stack(traces, latent, "value")}
    observed = [name for name in first if name not in latent]
    if observed:
        groups["posterior_predictive"] = _stack(predictions, observed, "value")
        groups["log_likelihood"] = _stack(traces, observed, "log_prob")
    if stats:
        groups["sample_stats"] = {name: numpy_of(value) for name, value in stats.items()}
    if prior:
        groups["prior"] = _stack(prior, latent, "value")
        groups["prior_predictive"] = _stack(prior, observed, "value")
    for group, variables in groups.items():
        number = 1 if group in ("prior", "prior_predictive") else chains
        for name, value in variables.items():
            variables[name] = value.reshape(number, len(value) // number, *value.shape[1:])
    if observed:
        groups["observed_data"] = {n: numpy_of(first[n]["value"]) for n in observed}
    axes, known, layers = _dimensions(first)
    if layers:
        groups["constant_data"] = {name: np.array(value) for name, value in layers.items()}
    labels, names = labelled(groups, known, axes, coords, dims)
    return build(groups, labels, names, {"method": type(posterior).__name__})


def _check_call(model: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Refuse what is no Pyro model for these arguments."""
    name = getattr(model, "__name__", type(model).__name__)
    if isinstance(model, type):
        raise OptionError(f"to_arviz: model must be an object or a function, got the class {name}.")
    try:
        inspect.signature(model.forward if isinstance(model, nn.Module) else model).bind(*arguments)
    except TypeError as error:
        raise OptionError(
            f"to_arviz: the Pyro model {name} is called with data, the tuple of its arguments, and "
            f"does not take these {len(arguments)}: {error}. A network alone is no model: "
            "pyronorm.NormalizationModel(network, likelihood, num_data)."
        ) from None
    except ValueError:  # of no known signature
        pass


def _draws(
    posterior: Any, arguments: tuple[Any, ...], num_samples: int | None
) -> tuple[list[dict[str, Tensor]], int, dict[str, Tensor]]:
    """Values of all latent sites by draw, the number of chains, and what the sampler said."""
    if isinstance(posterior, MCMC):
        samples = samples_of_mcmc(posterior)
        chains, length = next(iter(samples.values())).shape[:2]
        number = length if num_samples is None else num_samples // chains
        if not 1 <= number <= length:
            raise OptionError(
                f"to_arviz: num_samples must be between {chains} and {chains * length}, got "
                f"{num_samples}."
            )
        index = torch.linspace(0, length - 1, number).round().long()
        picked = {name: value[:, index].flatten(0, 1) for name, value in samples.items()}
        stats = stats_of_mcmc(posterior, chains, length)
        stats = {k: v.reshape(chains, length)[:, index].flatten() for k, v in stats.items()}
        values = [{k: v[i] for k, v in picked.items()} for i in range(chains * number)]
        return values, chains, stats
    if not callable(posterior) or isinstance(posterior, type):
        raise OptionError(
            "to_arviz: for a Pyro model that is no NormalizationModel the posterior must be its guide "
            f"or a finished MCMC run, got {type(posterior).__name__}."
        )
    found = []
    for _ in range(200 if num_samples is None else num_samples):
        with own_values(posterior):
            trace = poutine.trace(posterior).get_trace(*arguments)
        found.append({name: site["value"] for name, site in _sites(trace).items()})
    return found, 1, {}


def _free(model: Callable[..., Any], values: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The model given its latents, with its data drawn anew."""
    conditioned: Callable[..., Any] = poutine.condition(poutine.uncondition(model), dict(values))
    return conditioned


def _sites(trace: poutine.Trace) -> _Sites:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not (site["infer"] or {}).get("is_auxiliary")
    }


def _is_data(site: Any, values: Mapping[str, Tensor]) -> bool:
    return bool(site["is_observed"]) and site["name"] not in values


def _stack(traces: list[_Sites], names: list[str], what: str) -> dict[str, NDArray[Any]]:
    found = {}
    for name in names:
        values = [_unscaled(t[name]) if what == "log_prob" else t[name]["value"] for t in traces]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise DataError(
                f"to_arviz: the site {name!r} has other shapes in other draws: {sorted(shapes)}."
            )
        found[name] = np.stack([numpy_of(value) for value in values])
    return found


def _unscaled(site: Any) -> Tensor:
    """Pointwise log density, without the factor of a subsample."""
    value: Tensor = site["fn"].log_prob(site["value"])
    return value


def _dimensions(
    sites: _Sites,
) -> tuple[dict[str, list[str]], dict[str, Any], dict[str, list[str]]]:
    """Names of the axes of every site, coordinates, and the layer of each channel."""
    dims: dict[str, list[str]] = {}
    coords: dict[str, Any] = {}
    layers: dict[str, list[str]] = {}
    for name, site in sites.items():
        shape, events = site["value"].shape, site["fn"].event_dim
        axes = [f"{name}_dim_{i}" for i in range(len(shape))]
        for frame in site["cond_indep_stack"]:
            place = len(shape) - events + frame.dim if frame.vectorized else -1
            if 0 <= place < len(shape) and shape[place] > 1:
                axes[place] = frame.name
                coords[frame.name] = np.arange(shape[place])
        space = (site["infer"] or {}).get("latent_space")
        if isinstance(space, LatentSpace):
            channel, layer = f"{space.prefix}channel", f"{space.prefix}layer"
            axes[-1] = channel
            coords[channel] = list(space.channel_labels)
            layers[layer] = list(space.channel_layers)
            dims[layer] = [channel]
        dims[name] = axes
    return dims, coords, layers
