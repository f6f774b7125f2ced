"""Posteriors over normalization statistics, as ArviZ data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.devices import check_memory
from pyronorm.diagnostics.arviz_labels import (
    DATA_GROUPS,
    Coords,
    Dims,
    labelled,
    layers_of,
    numpy_of,
)
from pyronorm.diagnostics.arviz_versions import Groups, build
from pyronorm.diagnostics.pyro_export import export_pyro
from pyronorm.errors import DataError, OptionError
from pyronorm.infer.batch import MiniBatch, batch_length
from pyronorm.infer.data import gather
from pyronorm.infer.ensemble import Members
from pyronorm.infer.own_sites import draw_own_sites, own_log_prior
from pyronorm.infer.predict import draws_for, evaluate_draws
from pyronorm.inputs import is_one_piece, map_tensors, num_examples, tensors_of
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed, seeded

__all__ = ["channels", "to_arviz"]

_ELEMENTS = 2**25  # of the outputs that data are drawn for at once


@checked
def to_arviz(
    model: NormalizationModel | Callable[..., Any],
    posterior: Any,
    data: Any = None,
    num_samples: Count | None = None,
    *,
    batch_size: Count = 256,
    include_inputs: bool = True,
    prior_predictive: bool = False,
    coords: Coords | None = None,
    dims: Dims | None = None,
    seed: Seed = None,
    progress: bool = True,
) -> Any:
    r"""Export a posterior over normalization statistics to ArviZ.

    Groups, all with the dimensions ``chain``, ``draw`` (one chain, except for MCMC):

    * ``posterior``: ``shift`` and ``scale`` over ``channel``; where the reference statistics are
      known (batch and population normalizers) also the statistics they imply, ``mean``
      :math:`= \mu - \sigma\,\text{shift}` and ``std`` :math:`= \sigma/\text{scale}`.
      A prior with hyperparameters adds them where the posterior has them, e.g. ``batch_size`` over
      ``batch_size_group``; sites that the network samples itself (weights with a prior) come by name.
    * ``prior``: draws of the same, unless the prior is improper; ``prior_predictive`` on request.
    * ``sample_stats``: ``log_prior``, of latents, sites of the network's own and hyperparameters
      (which are integrated out where the posterior has none, as a bank); ``log_q``, if the posterior
      has a density; ``lp``, the unnormalized log posterior
      :math:`\log p(z) + \frac{N}{|\text{data}|}\sum_i \log p(y_i|x_i, z)` (exact if ``data`` are the
      training data); ``diverging`` for MCMC, and of :func:`pyronorm.run_nuts` ``energy``,
      ``tree_depth`` and ``acceptance_rate``.
    * ``posterior_predictive``, ``log_likelihood``, ``observed_data``: ``y`` over ``example``. An
      example whose values are all missing has none in ``log_likelihood``, so that ``az.loo`` is over
      the examples with data.
    * ``constant_data``: inputs ``x``, ``layer`` of each channel, and ``reference_mean`` and
      ``reference_std`` where known.

    The coordinate ``channel`` reads ``layer1.0.bn1[3]``, and ``layer`` in ``constant_data`` names the
    layer of each (:func:`channels` selects one). Attributes of the posterior record versions, seed and
    method.

    **Any other Pyro model** that uses :func:`pyronorm.sample_latents`, or none of this library, is
    exported with all of its sites, each over the dimensions that its plates name: ``posterior`` (latent
    sites), ``posterior_predictive``, ``log_likelihood`` and ``observed_data`` (observed sites), on
    request ``prior`` and ``prior_predictive``. Every latent site has to be one of the guide. Put
    networks that a function uses in evaluation mode first.

    Args:
        model: the model; its network runs in evaluation mode. Or a Pyro model of your own.
        posterior: any posterior, as in :func:`pyronorm.predict`. The members of an ensemble are its
            chains.
        data: of a Pyro model of your own, the tuple of arguments that model and guide are called
            with. Else pairs ``(x, y)``, or inputs alone; None leaves out all that needs data. For
            ``az.loo`` these must be the training data; on held-out data the log likelihood is
            already out of sample.
        num_samples: number of draws (of each member of an ensemble); None for all of stored draws
            and chains, all rows of a bank of fewer than 200, and 200 else.
        batch_size: examples at once, where the data do not come in batches.
        include_inputs: whether to store ``x``.
        prior_predictive: whether to draw data from the prior as well, as many as of the posterior.
        coords: labels of your own by dimension, ``{"example": names}``.
        dims: dimensions of your own by variable, ``{"y": ["example", "pixel"]}``, without ``chain``
            and ``draw``.
        seed: for the draws, see :func:`pyronorm.randomness.seeded`.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        An InferenceData (ArviZ 0.x) or a DataTree (ArviZ 1.x).

    Raises:
        OptionError: if ``posterior`` is none, or has not that many draws; if the prior is improper
            and ``prior_predictive`` asked for; or if ``coords`` or ``dims`` do not fit.
        StatisticsError: if population statistics are missing or stale.
        DataError: if data are empty, impossible or not finite, or missing where they are needed.
    """
    if not isinstance(model, NormalizationModel):
        arguments = data if isinstance(data, tuple) else () if data is None else (data,)
        return export_pyro(
            model,
            posterior,
            arguments,
            num_samples,
            prior_predictive=prior_predictive,
            coords=coords,
            dims=dims,
            seed=seed,
        )
    network = model.network
    model_data = None if data is None else gather(data, batch_size)
    batches = None if model_data is None else [model_data]
    steps = None if model_data is None else -(-batch_length(model_data) // batch_size)
    with (
        seeded(seed, network.like),
        torch.no_grad(),
        progress_bar("export", steps, show=progress) as bar,
    ):
        members = draws_for(model, posterior, num_samples, batches, None, "to_arviz", 200)
        draws = members[0][1] if len(members) == 1 else Draws.join([mine for _, mine in members])
        shift, scale = draws.shift, draws.scale
        groups: Groups = {"posterior": _latents(model, draws)}
        mean, std = network.reference_statistics()
        constant: dict[str, Tensor] = {}
        if not torch.isnan(mean).any():
            groups["posterior"] |= {
                "mean": numpy_of(mean - std * shift),
                "std": numpy_of(std / scale),
            }
            constant = {"reference_mean": mean, "reference_std": std}
        example = None if model_data is None else _first_example(model, model_data.x)
        if model.prior.is_proper:
            prior = model.prior.draws(model, len(draws))
            if draws.others:
                others = draw_own_sites(model, _needed(example, "the prior"), len(draws))
                prior = replace(prior, others=others)
            groups["prior"] = _latents(model, prior)
            if prior_predictive:
                data_given = _needed(model_data, "prior_predictive").x
                groups["prior_predictive"] = _drawn_data(model, prior, data_given, batch_size)
        elif prior_predictive:
            raise OptionError(
                f"to_arviz: {type(model.prior).__name__} is improper, so nothing can be drawn from it."
            )
        log_prior = model.prior.log_prob(model.space, shift, scale, draws.hyper)
        if draws.others:
            own = [
                own_log_prior(mine, _needed(example, "the prior density"), some)
                for mine, some in members
            ]
            log_prior = log_prior + torch.cat(own).to(log_prior)
        groups["sample_stats"] = {"log_prior": numpy_of(log_prior)}
        groups["sample_stats"] |= {name: numpy_of(value) for name, value in draws.stats.items()}
        if draws.log_density is not None:
            groups["sample_stats"]["log_q"] = numpy_of(draws.log_density)
        present = None
        if model_data is not None:
            present = _add_data(
                groups, model, members, log_prior, model_data, batch_size, bar.advance
            )
            if include_inputs and not is_one_piece(model_data.x):
                named = tensors_of(model_data.x)
                constant |= {f"x_{name}" if name else "x": value for name, value in named.items()}
    _split_chains(groups, draws.num_chains)
    layers = np.array(model.space.channel_layers)
    groups["constant_data"] = {"layer": layers, **{k: numpy_of(v) for k, v in constant.items()}}
    return _build(groups, model, _attributes(model, posterior, seed), present, coords, dims)


@checked
def channels(idata: Any, layer: str | Iterable[str], prefix: str = "") -> dict[str, list[str]]:
    """Select the channels of a layer, as the ``coords`` of ArviZ functions.

    ``az.plot_forest(idata, var_names="scale", coords=pn.channels(idata, layer="layer1.0.bn1"))``

    Args:
        idata: what :func:`to_arviz` returned, or read back from a file.
        layer: the name of a layer, or several.
        prefix: that of the :class:`~pyronorm.LatentNetwork`, in models with several.

    Returns:
        ``{"channel": [...]}``, with the prefix in front.

    Raises:
        OptionError: if there is no such layer; the message lists those there are. Or no such prefix.
    """
    names = [layer] if isinstance(layer, str) else list(layer)
    layers = layers_of(idata, "channels", prefix)
    for name in names:
        if name not in layers:
            raise OptionError(
                f"channels: there is no layer {name!r}; there are {list(dict.fromkeys(layers))}."
            )
    labels = [str(label) for label in idata["posterior"][f"{prefix}channel"].values]
    return {f"{prefix}channel": [c for c, own in zip(labels, layers, strict=True) if own in names]}


def _latents(model: NormalizationModel, draws: Draws) -> dict[str, Any]:
    """The variables that a posterior and the prior have in common."""
    found = {"shift": draws.shift, "scale": draws.scale}
    found |= {k: value for k, (value, _) in model.prior.report(model.space, draws.hyper).items()}
    return {name: numpy_of(value) for name, value in {**found, **draws.others}.items()}


def _first_example(model: NormalizationModel, x: Any) -> Any:
    one = x if is_one_piece(x) else map_tensors(lambda tensor: tensor[:1], x)
    return model.network.prepare(one)


def _needed(value: Any, what: str) -> Any:
    if value is None:
        raise DataError(f"to_arviz: {what} needs data: inputs x, or pairs (x, y).")
    return value


def _drawn_data(
    model: NormalizationModel, draws: Draws, x: Any, batch_size: Count
) -> dict[str, NDArray[Any]]:
    """One data set for each draw."""
    found = evaluate_draws([(model, draws)], MiniBatch(x).arguments(), batch_size)
    return _samples(model, (output for _, output in found), x)


def _samples(
    model: NormalizationModel, outputs: Iterable[Tensor], x: Any
) -> dict[str, NDArray[Any]]:
    """Data for each output, drawn alike whatever the batches are that the outputs come in."""
    parts: list[NDArray[Any]] = []
    for block in _blocks(outputs):
        drawn = model.likelihood.distribution(block, 1).sample()
        if not parts:
            examples = 1 if is_one_piece(x) else num_examples(x)
            check_memory(
                f"to_arviz, data of {examples:,} examples for {len(drawn):,} draws",
                drawn[:, :1].numel() * examples,
                torch.empty(0, dtype=drawn.dtype),
                "Export fewer draws or examples.",
            )
        parts.append(numpy_of(drawn))
    return {"y": np.concatenate(parts, axis=1)}


def _blocks(outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """The outputs anew, in blocks of as many examples as their size alone says."""
    waiting: list[Tensor] = []
    rows = 0
    for output in outputs:
        rows = rows or max(1, min(256, _ELEMENTS // max(1, output[:, :1].numel())))
        waiting.append(output)
        if sum(part.shape[1] for part in waiting) >= rows:
            *whole, rest = torch.cat(waiting, 1).split(rows, 1)
            yield from whole
            waiting = [rest]
    yield torch.cat(waiting, 1)


def _add_data(
    groups: Groups,
    model: NormalizationModel,
    members: Members,
    log_prior: Tensor,
    data: MiniBatch,
    batch_size: Count,
    done: Callable[[], None],
) -> NDArray[Any] | None:
    """Add what the data say; return which examples have any, None if all."""
    log_likelihood = []

    def outputs() -> Iterator[Tensor]:
        for batch, output in evaluate_draws(members, data.arguments(), batch_size, done=done):
            if batch.y is not None:
                log_p = model.likelihood.log_prob(output, batch.y, 1)
                log_likelihood.append(log_p if batch.weight is None else log_p * batch.weight)
            yield output

    y = data.y
    groups["posterior_predictive"] = _samples(model, outputs(), data.x)
    if y is None:
        return None
    pointwise = torch.cat(log_likelihood, 1)
    lp = log_prior + pointwise.sum(1) * (model.num_data / num_examples(y))
    groups["sample_stats"]["lp"] = numpy_of(lp)
    drawn = groups["posterior_predictive"]["y"].shape[1:]
    if drawn == tuple(y.shape) and y[:1].numel() == 1:  # az.loo_pit wants the axes of y
        pointwise = pointwise.reshape(-1, *y.shape)
    groups["log_likelihood"] = {"y": numpy_of(pointwise)}
    groups["observed_data"] = {"y": numpy_of(y)}
    present = numpy_of(model.likelihood.present(y))
    return None if present.all() else np.flatnonzero(present)


def _split_chains(groups: Groups, chains: Count) -> None:
    """Give every variable over draws the axes (chain, draw)."""
    for group, variables in groups.items():
        if group not in DATA_GROUPS:
            number = 1 if group in ("prior", "prior_predictive") else chains
            for key, value in variables.items():
                variables[key] = value.reshape(number, len(value) // number, *value.shape[1:])


def _build(
    groups: Groups,
    model: NormalizationModel,
    attributes: dict[str, Any],
    present: NDArray[Any] | None,
    users_coords: Coords | None,
    users_dims: Dims | None,
) -> Any:
    space = model.space
    per_channel = ("layer", "shift", "scale", "mean", "std", "reference_mean", "reference_std")
    dims = {name: ["channel"] for name in per_channel}
    coords: dict[str, Any] = {"channel": list(space.channel_labels)}
    hyper = model.prior.law(space, model.network.like).hyper
    means = {site: fn.mean for site, fn in hyper.items()}
    for name, (_, of_groups) in model.prior.report(space, means).items():
        dims[name] = [f"{name}_group"]
        coords[f"{name}_group"] = list(of_groups)
    inputs = [name for name in groups.get("constant_data", {}) if name[:1] == "x"]
    arrays = [("y", "posterior_predictive", 3), *((name, "constant_data", 1) for name in inputs)]
    for name, group, axes in arrays:
        if name in groups.get(group, {}):
            shape = groups[group][name].shape
            dims[name] = ["example", *(f"{name}_dim_{i}" for i in range(len(shape) - axes))]
            coords["example"] = np.arange(shape[axes - 1])
    labels, names = labelled(groups, coords, dims, users_coords, users_dims)
    kept = {} if present is None else {"log_likelihood": {names["y"][0]: present}}
    return build(groups, labels, names, attributes, kept)


def _attributes(model: NormalizationModel, posterior: Any, seed: Seed) -> dict[str, str | int]:
    normalizers = dict.fromkeys(layer.normalizer for layer in model.space.layers)
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "inference_library": "pyronorm",
        "inference_library_version": version("pyronorm"),
        "pyro_version": version("pyro-ppl"),
        "torch_version": str(torch.__version__),
        "method": type(posterior).__name__,
        "normalizers": ", ".join(normalizers),
        "prior": repr(model.prior),
        "likelihood": type(model.likelihood).__name__,
        "num_data": model.num_data,
        "seed": seed if isinstance(seed, int) else "none" if seed is None else "generator",
    }
