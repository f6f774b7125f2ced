"""Save a model with its posterior in one file, and load them in another process."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.archive import read_archive, write_archive
from pyronorm.conversion import convert
from pyronorm.conversion.record import Conversion, conversions_of
from pyronorm.errors import FileError, OptionError
from pyronorm.guides import Guide, StatisticsBank
from pyronorm.infer.posterior import Posterior
from pyronorm.latents import Draws, LatentNetwork
from pyronorm.latents.inputs import Output
from pyronorm.likelihoods import Likelihood
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm, Normalizer
from pyronorm.priors import Prior
from pyronorm.settings import class_named, decode, encode, name_of

__all__ = ["load", "save"]

_KIND = "model"


def save(
    path: str | os.PathLike[str],
    model: NormalizationModel,
    posterior: Any = None,
) -> None:
    """Save a model and a posterior in one file, without pickle.

    Tensors are written as safetensors, all else as JSON within: how the network was converted, the
    settings of normalizers, likelihood, prior and guide, and versions. Population statistics that are
    stale are saved as missing, as in every state dict. The network's code is not in the file:
    :func:`load` is given the network.

    Args:
        path: the file, as a rule ``*.safetensors``.
        model: the model.
        posterior: a guide, a statistics bank or draws; None for the model alone. Of any other
            posterior save draws: ``posterior.draw(model, 1000)``.

    Raises:
        OptionError: if something has no form in a file: a guide of your own that does not keep its
            arguments, another kind of posterior.
        FileError: if the file cannot be written.
    """
    if not isinstance(model, NormalizationModel):
        raise OptionError(
            f"save: expected a NormalizationModel and its posterior, got {type(model).__name__}."
        )
    network = model.network
    tensors: dict[str, Tensor] = {}
    _add(tensors, "network", network.network.state_dict())
    content = {
        "network": {
            "class": name_of(type(network.network)),
            "conversions": [
                encode([c.normalizer, dict(c.options), c.example], tensors, f"conversion.{i}")
                for i, c in enumerate(conversions_of(network.network))
            ],
            "layers": [[x.name, x.num_channels, x.normalizer] for x in network.space.layers],
            "prefix": network.space.prefix,
            "samples_per_call": network.samples_per_call,
            "output": _encode_output(network.output),
            "plain": not network.layers,
        },
        "likelihood": _encode_module(model.likelihood, tensors, "likelihood"),
        "prior": encode(model.prior, tensors, "prior"),
        "num_data": model.num_data,
        "draws": model.draws,
        "posterior": _encode_posterior(posterior, tensors),
    }
    write_archive(path, _KIND, content, tensors)


def load(
    path: str | os.PathLike[str],
    network: nn.Module | Callable[[], nn.Module],
    *,
    likelihood: Likelihood | None = None,
) -> tuple[NormalizationModel, Posterior | None]:
    """Load what :func:`save` wrote.

    Classes of your own (a likelihood, prior, guide, normalizer) must be there already: no module is
    imported, and nothing in the file is run.

    Args:
        path: the file.
        network: the network as it was before :func:`pyronorm.convert`, with any weights, or a function
            that makes it. It is converted anew and takes the weights of the file; the one given stays
            as it is.
        likelihood: for a model whose likelihood is a function (``Likelihood.of``) or does not keep its
            arguments, the same likelihood; it takes the parameters of the file.

    Returns:
        The model, in evaluation mode, and the posterior, or None if the file has none. Predictions
        are those of before, bit by bit on the CPU.

    Raises:
        FileError: if the file is missing, damaged, of a later format, or of another network; the
            message names the layer.
        OptionError: if a class is not known in this process.
        ConversionError: if the network cannot be converted as it was.
    """
    content, tensors = read_archive(path, _KIND)
    where = os.fspath(path)
    saved = content["network"]
    latent = _network(where, saved, tensors, network)
    if likelihood is None:
        likelihood = _decode_module(content["likelihood"], tensors, where)
    _fill(where, "likelihood", likelihood, _part(tensors, "likelihood"))
    prior = decode(content["prior"], tensors, where, Prior)
    model = NormalizationModel(latent, likelihood, content["num_data"], prior, content["draws"])
    model.eval()
    return model, _decode_posterior(content["posterior"], tensors, model, where)


def _network(
    where: str,
    saved: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    network: nn.Module | Callable[[], nn.Module],
) -> LatentNetwork:
    made: Any = network if isinstance(network, nn.Module) else network()
    if not isinstance(made, nn.Module):
        raise OptionError(
            f"load: network must be a module, or a function that makes one; got {type(made).__name__}."
        )
    made = copy.deepcopy(made)
    for module in made.modules():  # statistics come from the file: none are missing here
        count = getattr(module, "num_batches_tracked", None)
        if isinstance(count, Tensor):
            count.fill_(1)
    state = _part(tensors, "network")
    if not any(isinstance(module, LatentNorm) for module in made.modules()):
        for kind, options, example in saved["conversions"]:
            conversion = Conversion(
                decode(kind, tensors, where, Normalizer),
                decode(options, tensors, where),
                decode(example, tensors, where),
            )
            made = convert(
                made,
                conversion.normalizer,
                **conversion.options,
                example_input=conversion.example_input(),
            )
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        made = made.to(dtypes.pop())
    _fill(where, "network", made, state)
    latent = LatentNetwork(
        made,
        prefix=saved["prefix"],
        samples_per_call=saved["samples_per_call"],
        output=saved["output"],
        plain=saved["plain"],
    )
    layers = [[x.name, x.num_channels, x.normalizer] for x in latent.space.layers]
    for mine, theirs in zip(layers, saved["layers"], strict=False):
        if mine != theirs:
            raise FileError(
                f"{where}: is of another network. It has the layer {theirs[0]!r} with {theirs[1]} "
                f"channels and the normalizer {theirs[2]} where this network has {mine[0]!r} with "
                f"{mine[1]} channels and {mine[2]}."
            )
    if len(layers) != len(saved["layers"]):
        raise FileError(
            f"{where}: is of another network, with {len(saved['layers'])} normalization layers; this "
            f"one has {len(layers)}."
        )
    return latent


def _encode_output(output: Output) -> str | int | None:
    if output is None or isinstance(output, (str, int)):
        return output
    raise OptionError(
        "save: the network's output is chosen by a function, which has no form in a file. Choose it by "
        "a key or a position, or wrap the network in a module that returns one tensor."
    )


def _encode_module(module: Likelihood, tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    _add(tensors, where, module.state_dict())
    name = name_of(type(module))
    try:
        settings = encode(module.settings(), tensors, f"{where}.settings")
    except OptionError as error:  # a function, say: whoever loads has to have it
        return {"class": name, "settings": None, "why": str(error)}
    return {"class": name, "settings": settings}


def _decode_module(
    saved: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> Likelihood:
    if saved["settings"] is None:
        raise OptionError(
            f"load: {where} has no likelihood that can be made anew ({saved['why']}). Give the "
            "same one: load(path, network, likelihood=...)."
        )
    kind = class_named(saved["class"], Likelihood, where)
    made: Likelihood = kind(**decode(saved["settings"], tensors, where))
    return made


def _encode_posterior(posterior: Any, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    if posterior is None:
        return None
    if isinstance(posterior, Guide):
        settings = encode(posterior.settings(), tensors, "posterior.settings")
        _add(tensors, "posterior", posterior.state_dict())
        return {"kind": "guide", "class": name_of(type(posterior)), "settings": settings}
    if isinstance(posterior, (StatisticsBank, Draws)):
        kind = "bank" if isinstance(posterior, StatisticsBank) else "draws"
        return {"kind": kind, "value": encode(posterior, tensors, "posterior")}
    raise OptionError(
        f"save: the posterior must be a guide of pyronorm.guides, a StatisticsBank or Draws, got "
        f"{type(posterior).__name__}. Save draws of it: pyronorm.infer.as_posterior(posterior, "
        "'save').draw(model, 1000)."
    )


def _decode_posterior(
    saved: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
    model: NormalizationModel,
    where: str,
) -> Posterior | None:
    if saved is None:
        return None
    if saved["kind"] != "guide":
        value = decode(saved["value"], tensors, where)
        assert isinstance(value, (StatisticsBank, Draws))
        return value
    kind = class_named(saved["class"], Guide, where)
    assert issubclass(kind, Guide)
    guide = kind.from_settings(model, decode(saved["settings"], tensors, where))
    _fill(where, "posterior", guide, _part(tensors, "posterior"))
    return guide.eval()


def _add(tensors: dict[str, Tensor], part: str, state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise OptionError(
                f"save: the {part}'s state has {name!r}, a {type(value).__name__}; only tensors can be "
                "saved."
            )
        tensors[f"{part}/{name}"] = value


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    start = f"{part}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _fill(where: str, part: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state; what does not fit is named."""
    own = module.state_dict()
    problems = [f"lacks {name!r}" for name in state.keys() - own.keys()]
    problems += [f"has {name!r} besides" for name in own.keys() - state.keys()]
    problems += [
        f"has {name!r} with shape {tuple(own[name].shape)} instead of {tuple(value.shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FileError(
            f"{where}: is of another {part}. This one ({type(module).__name__}) "
            f"{'; '.join(sorted(problems)[:3])}{more}."
        )
    with torch.no_grad():
        module.load_state_dict(dict(state))
