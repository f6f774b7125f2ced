"""Turn the normalization layers of any network into layers with latent statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pyronorm.checks import check_instance, checked
from pyronorm.conversion.build import build
from pyronorm.conversion.holders import refuse_holders
from pyronorm.conversion.origin import LayerOrigin
from pyronorm.conversion.record import Conversion, record_conversion
from pyronorm.conversion.registry import kind_of, normalization_layers, registered
from pyronorm.conversion.surroundings import Surroundings, replace
from pyronorm.conversion.transformer import keep_latents_in_transformers
from pyronorm.errors import ConversionError, OptionError
from pyronorm.inputs import move_to, run, tensors_of
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.freshness import stamp_statistics
from pyronorm.normalizers.watch import unchecked, watch
from pyronorm.normalizers.words import plain_name
from pyronorm.propagation.copies import copied

__all__ = ["convert"]


@unchecked()
@checked
def convert(
    network: nn.Module,
    normalizer: Normalizer | None = None,
    only: str | Iterable[str] | None = None,
    example_input: Any = None,
    skip: str | Iterable[str] = (),
) -> nn.Module:
    r"""Return a copy of a network whose normalization layers carry latent statistics.

    Every BatchNorm1d/2d/3d, GroupNorm, LayerNorm, RMSNorm and InstanceNorm1d/2d/3d, every layer that
    computes the same under another name (with dropout and activation behind it, frozen, the RMSNorm
    classes of language models), and every layer of a class that :func:`pyronorm.conversion.register`
    was told of, becomes a :class:`LatentNorm` at the same place. Weights, biases and population
    statistics are kept, under the same ``state_dict`` keys, and hooks as well; without latents the
    copy computes what the original computes. The original is not touched. A layer that is registered
    at several places, or called several times, stays one layer with one shift and scale.
    :func:`pyronorm.conversion_report` tells what has become of each layer.

    In evaluation mode ``torch.nn.TransformerEncoderLayer`` may go around its normalization layers by
    a fused kernel; the copy never does.

    Args:
        network: any module. It may hold its layers in any nesting.
        normalizer: None keeps each layer's own kind (batch statistics stay batch statistics). A
            normalizer, e.g. ``Group(8)``, replaces them all: weight and bias stay, population
            statistics stay where the new kind has them (from BatchNorm to
            :class:`~pyronorm.normalizers.Population`, :class:`~pyronorm.normalizers.Weight` or
            :class:`~pyronorm.normalizers.Analytic` the network keeps its function in evaluation mode; to
            other kinds it changes, and has to be trained).
        only: names of the layers to convert, as in ``network.named_modules()``; shell patterns such
            as ``"layer1.*"`` are allowed. The others stay as they are.
        example_input: a batch as the network takes it (a tensor, or a tuple, dictionary or dataclass of
            tensors), on any device, for a normalizer that has to know the layers before each
            normalization (:class:`~pyronorm.normalizers.Weight`,
            :class:`~pyronorm.normalizers.Analytic`).
        skip: names of layers to leave as they are, likewise; it wins over ``only``.

    Returns:
        A new module of the network's class (or a :class:`LatentNorm`, if ``network`` is itself a
        normalization layer).

    Raises:
        ConversionError: if there is nothing to convert, or a layer that cannot be converted; the
            message names it. Nothing is skipped silently.
        OptionError: if ``only`` matches no layer, or ``example_input`` is missing.

    Example:
        >>> network = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> network[1]
        LatentNorm(Batch(eps=1e-05), num_channels=8)
    """
    if not isinstance(network, nn.Module):
        raise OptionError(
            f"convert: expected a network, a torch.nn.Module, got {network!r}."
            + (" Give an instance of it." if isinstance(network, type) else "")
        )
    _check_options(normalizer, example_input)
    only = list(only) if only is not None and not isinstance(only, str) else only
    skip = list(skip) if not isinstance(skip, str) else skip
    _refuse_lazy(network)
    targets = _targets(network, only, skip)
    refuse_holders(network, targets)
    kinds = {name: kind_of(name, module) for name, module in targets.items()}
    new = copied(network)
    old = {name: new.get_submodule(name) for name in targets}
    surroundings = Surroundings(network, new, targets, example_input)
    origins: dict[LatentNorm, LayerOrigin] = {}
    gone: list[nn.Module] = []
    for name, module in old.items():
        if not any(module is m for m in gone):  # or registered at two places, and replaced at both
            layer = build(name, module, kinds[name], normalizer)
            new = replace(new, module, layer)
            origins[layer] = LayerOrigin(name, module, kinds[name], surroundings)
            gone.append(module)
    surroundings.new = new
    for layer, origin in origins.items():
        layer.normalizer.adopt(layer, origin)
    _refuse_stray_references(new, gone + surroundings.taken)
    keep_latents_in_transformers(new)
    if surroundings.taken:
        _try(new, example_input)
    stamp_statistics(new)
    watch(new)
    record_conversion(new, Conversion.of(normalizer, example_input, only=only, skip=skip))
    return new


def _check_options(normalizer: Any, example_input: Any) -> None:
    if normalizer is not None:
        check_instance("convert", "normalizer", normalizer, Normalizer, "Group(8)")
        if not is_dataclass(type(normalizer)):
            raise OptionError(
                f"convert: the normalizer {type(normalizer).__name__} is no dataclass. Make it a frozen "
                "one, so that it can take a layer's eps and be written to a file."
            )
    if normalizer is not None and normalizer.needs_example and example_input is None:
        raise OptionError(
            f"convert: the {type(normalizer).__name__} normalizer needs example_input, a batch as the "
            "network takes it, to follow the network up to each normalization."
        )
    if example_input is not None and not tensors_of(example_input):
        raise OptionError(
            "convert: example_input must be a tensor, or a tuple, dictionary or dataclass of tensors, "
            f"got {type(example_input).__name__}."
        )


def _targets(
    network: nn.Module, only: str | Iterable[str] | None, skip: Iterable[str]
) -> dict[str, nn.Module]:
    candidates = normalization_layers(network)
    if not candidates:
        raise ConversionError(
            f"convert: {type(network).__name__} has no normalization layer. Convertible are "
            f"{registered()}, and what computes the same."
        )
    chosen = set(candidates) if only is None else _matching("only", only, candidates)
    if not chosen:
        raise OptionError(
            "convert: only names no layer. Leave it out to convert all, or name some of "
            f"{', '.join(repr(plain_name(name)) for name in candidates)}."
        )
    chosen -= _matching("skip", skip, candidates)
    if not chosen:
        raise OptionError("convert: skip leaves no normalization layer to convert.")
    return {n: m for n, m in candidates.items() if n in chosen}


def _matching(option: str, patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = {
            n for n in names if fnmatchcase(n, pattern) or fnmatchcase(plain_name(n), pattern)
        }
        if not matches:
            raise OptionError(
                f"convert: {option}={pattern!r} matches no normalization layer; there are "
                f"{', '.join(repr(plain_name(name)) for name in names)}."
            )
        found |= matches
    return found


def _refuse_lazy(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise ConversionError(
                f"convert: layer {name!r} ({type(module).__name__}) is lazy: run the network once, "
                "so that it knows its shapes, then convert."
            )


@torch.no_grad()
def _try(network: nn.Module, example_input: Any) -> None:
    """Run the network once: it may read of a layer what the Identity at its place does not have."""
    modes = {module: module.training for module in network.modules()}
    try:
        run(network.eval(), move_to(network, example_input))
    except Exception as error:
        raise ConversionError(
            f"convert: {type(network).__name__} does not run without the layers that the normalizers "
            f"have taken in, {type(error).__name__}: {error}. Leave the normalization behind them out "
            "with skip=[...], or choose another normalizer."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def _refuse_stray_references(network: nn.Module, replaced: list[nn.Module]) -> None:
    """Find replaced layers that are still reachable outside of the module tree."""
    gone = {id(m) for m in replaced}
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules" and _holds(value, gone):
                raise ConversionError(
                    f"convert: {name or type(network).__name__!s}.{attribute} refers to a "
                    "normalization layer outside of the module tree, so it would keep using the "
                    "unconverted layer. Keep layers in a ModuleList or ModuleDict."
                )


def _holds(value: object, gone: set[int]) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return any(id(v) in gone for v in value)
    return id(value) in gone
