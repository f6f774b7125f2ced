"""Save a model with its posterior in one file, and load them in another process."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.archive import read_archive, write_archive
from pyronorm.checks import checked
from pyronorm.conversion import convert
from pyronorm.conversion.record import Conversion, Form, conversions_of
from pyronorm.errors import ConversionError, FileError, OptionError
from pyronorm.guides import Guide, StatisticsBank
from pyronorm.infer.architecture import check_architecture, describe_architecture
from pyronorm.infer.ensemble import Ensemble
from pyronorm.infer.posterior import Posterior, as_posterior
from pyronorm.inputs import Output
from pyronorm.latents import Draws, LatentNetwork
from pyronorm.likelihoods import Likelihood
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm, Normalizer
from pyronorm.priors import Prior
from pyronorm.settings import class_named, decode, encode, lasting_name, name_of

__all__ = ["load", "save"]

_KIND = "model"


@checked
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
            arguments, a class inside of a function, another kind of posterior.
        ShapeError: if the posterior is one for another network.
        StatisticsError: if it is a bank of other weights.
        FileError: if the file cannot be written.
    """
    if not isinstance(model, NormalizationModel):
        raise OptionError(
            "save: expected a path, a NormalizationModel and its posterior, got "
            f"{type(model).__name__} for the model."
        )
    network = model.network
    tensors: dict[str, Tensor] = {}
    _add(tensors, "network", network.network.state_dict())
    _add(tensors, "buffers", _passing_buffers(network.network))
    _add(tensors, "standardization", network.standardization.state_dict())
    content = {
        "network": {
            "architecture": describe_architecture(network.network),
            "conversions": [
                encode([c.normalizer, dict(c.options), _example(c)], tensors, f"conversion.{i}")
                for i, c in enumerate(conversions_of(network.network))
            ],
            "layers": _layers(network),
            "prefix": network.space.prefix,
            "samples_per_call": network.samples_per_call,
            "output": _encode_output(network.output),
            "plain": not network.layers,
        },
        "likelihood": _encode_module(model.likelihood, tensors, "likelihood"),
        "prior": encode(model.prior, tensors, "prior"),
        "num_data": model.num_data,
        "draws": model.draws,
        "posterior": _encode_posterior(posterior, model, tensors),
    }
    write_archive(path, _KIND, content, tensors)


@checked
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
        likelihood: for a model whose likelihood is a function (``Likelihood.of``), does not keep its
            arguments, or is of a class inside of a function: the same likelihood; it takes the
            parameters of the file.

    Returns:
        The model, in evaluation mode, and the posterior, or None if the file has none. Predictions
        are those of before, bit by bit on the CPU.

    Raises:
        FileError: if the file is missing, damaged, of a later format, or of another network or
            likelihood; the message names the layer.
        OptionError: if a class is not known in this process, or ``network`` is none.
        ConversionError: if the network cannot be converted as it was.
    """
    content, tensors = read_archive(path, _KIND)
    where = os.fspath(path)
    saved = content["network"]
    latent = _network(where, saved, tensors, network)
    if standardization := _part(tensors, "standardization"):
        latent.standardization.set(**standardization)
    likelihood = _likelihood(where, content["likelihood"], tensors, likelihood)
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
    made = copy.deepcopy(_plain_network(network))
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
            try:
                made = convert(
                    made,
                    conversion.normalizer,
                    **conversion.options,
                    example_input=conversion.example_input(next(made.parameters(), None)),
                )
            except ConversionError as error:
                names = ", ".join(repr(layer[0]) for layer in saved["layers"])
                raise ConversionError(
                    f"{where}: the network cannot be converted as the saved one was, which had the "
                    f"normalization layers {names}. {error}"
                ) from error
    check_architecture(where, saved["architecture"], made)
    _take_passing_buffers(made, _part(tensors, "buffers"))
    for name, tensor in made.state_dict(keep_vars=True).items():
        if name in state:  # each in its own precision, tied ones together
            tensor.data = tensor.data.to(state[name].dtype)
    _fill(where, "network", made, state)
    latent = LatentNetwork(
        made,
        prefix=saved["prefix"],
        samples_per_call=saved["samples_per_call"],
        output=saved["output"],
        plain=saved["plain"],
    )
    layers = _layers(latent)
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


def _plain_network(network: Any) -> nn.Module:
    made = network
    if callable(network) and not isinstance(network, nn.Module):
        try:
            inspect.signature(network).bind()
        except TypeError as error:
            name = getattr(network, "__name__", type(network).__name__)
            raise OptionError(
                f"load: network must be a network, or a function that makes one without arguments; "
                f"{name} takes some ({error}). Give the network itself, {name}(...), or lambda: "
                f"{name}(...)."
            ) from None
        except ValueError:  # of no known signature
            pass
        made = network()
    if isinstance(made, nn.Module) and not isinstance(made, (NormalizationModel, LatentNetwork)):
        return made
    raise OptionError(
        "load: network must be the network as it was before pyronorm.convert, or a function that makes "
        f"it; got {type(made).__name__}."
    )


def _layers(network: LatentNetwork) -> list[list[Any]]:
    """Name, channels and normalizer of every layer, settings included."""
    pairs = zip(network.space.layers, network.layers, strict=True)
    return [[x.name, x.num_channels, repr(layer.normalizer)] for x, layer in pairs]


def _passing_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dict does not have, such as tables of positions."""
    state = network.state_dict()
    return {name: value for name, value in network.named_buffers() if name not in state}


def _take_passing_buffers(network: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, old in _passing_buffers(network).items():
        if name in buffers:
            part, _, key = name.rpartition(".")
            network.get_submodule(part)._buffers[key] = buffers[name].to(old.device)


def _example(conversion: Conversion) -> Any:
    """The form of the example input, if it is one of tuples, lists and dictionaries."""
    parts = [conversion.example]
    while parts:
        part = parts.pop()
        if type(part) in (tuple, list, dict):
            parts += part.values() if isinstance(part, dict) else part
        elif not (part is None or isinstance(part, Form)):
            raise OptionError(
                f"save: the network was converted with an example_input that holds a "
                f"{type(part).__name__}, which has no form in a file. Tensors, tuples and dictionaries "
                "have one; or choose a normalizer that needs no example."
            )
    return conversion.example


def _encode_output(output: Output) -> str | int | None:
    if output is None or isinstance(output, (str, int)):
        return output
    raise OptionError(
        "save: the network's output is chosen by a function, which has no form in a file. Choose it by "
        "a key or a position, or wrap the network in a module that returns one tensor."
    )


def _encode_module(module: Likelihood, tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    _add(tensors, where, module.state_dict())
    try:
        return _encode_likelihood(module, tensors, where)
    except OptionError as error:  # a function, say: whoever loads has to have it
        return {"class": name_of(type(module)), "settings": None, "why": str(error)}


def _encode_likelihood(
    likelihood: Likelihood, tensors: dict[str, Tensor], where: str
) -> dict[str, Any]:
    lasting_name(type(likelihood), "save")
    settings = likelihood.settings()
    parts = {key: value for key, value in settings.items() if isinstance(value, Likelihood)}
    own = {key: value for key, value in settings.items() if key not in parts}
    return {
        "class": name_of(type(likelihood)),
        "settings": encode(own, tensors, f"{where}.settings"),
        "parts": {k: _encode_likelihood(v, tensors, f"{where}.{k}") for k, v in parts.items()},
    }


def _likelihood(
    where: str, saved: Mapping[str, Any], tensors: Mapping[str, Tensor], given: Any
) -> Likelihood:
    name = saved["class"].rpartition(":")[2].rpartition(".")[2]
    if given is not None:
        if type(given).__name__ != name:
            raise FileError(
                f"{where}: was saved with the likelihood {name}, got {type(given).__name__}."
            )
        likelihood: Likelihood = given
        return likelihood
    if saved["settings"] is None:
        raise OptionError(
            f"{where}: the likelihood {name} cannot be made anew ({saved['why']}). Give the same one: "
            "load(path, network, likelihood=...)."
        )
    kind = class_named(saved["class"], Likelihood, where)
    parts = {k: _likelihood(where, v, tensors, None) for k, v in saved["parts"].items()}
    made: Likelihood = kind(**decode(saved["settings"], tensors, where), **parts)
    return made


def _encode_posterior(
    posterior: Any, model: NormalizationModel, tensors: dict[str, Tensor]
) -> dict[str, Any] | None:
    if posterior is None:
        return None
    if isinstance(posterior, Guide):
        posterior.check(model.space)
        name = lasting_name(type(posterior), "save")
        settings = encode(posterior.settings(), tensors, "posterior.settings")
        _add(tensors, "posterior", posterior.state_dict())
        return {"kind": "guide", "class": name, "settings": settings}
    if isinstance(posterior, StatisticsBank):
        posterior.check(model.space, "save")
        posterior.check_weights(model, "save")
        return {"kind": "bank", "value": encode(posterior, tensors, "posterior")}
    if isinstance(posterior, Draws):
        model.space.check(posterior.shift, "save")
        return {"kind": "draws", "value": encode(posterior, tensors, "posterior")}
    as_posterior(posterior, "save", model)  # refuses what is none
    fix = (
        "Save each of its members."
        if isinstance(posterior, Ensemble)
        else "Save draws of it: pyronorm.infer.as_posterior(posterior, 'save', model)"
        ".draw(model, 1000)."
    )
    raise OptionError(
        "save: only guides of pyronorm.guides, a StatisticsBank and Draws have a form in a file, got "
        f"{type(posterior).__name__}. {fix}"
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
