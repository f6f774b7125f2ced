"""Turn the normalization layers of any network into layers with latent statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pyronorm.conversion.carry import carry_affine, carry_hooks, carry_start, carry_statistics
from pyronorm.conversion.feeding import find_feeding_layers
from pyronorm.conversion.kinds import CONVERTIBLE, is_normalization, kind_of, refuse_unconvertible
from pyronorm.conversion.transformer import keep_latents_in_transformers
from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers.analytic import Analytic
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.freshness import stamp_statistics, watch_loading
from pyronorm.normalizers.group import Layer
from pyronorm.normalizers.weight import Weight
from pyronorm.propagation.propagate import build_propagation
from pyronorm.propagation.tracing import trace

__all__ = ["convert"]


def convert(
    network: nn.Module,
    normalizer: Normalizer | None = None,
    only: Iterable[str] | None = None,
    example_input: Tensor | None = None,
) -> nn.Module:
    r"""Return a copy of a network whose normalization layers carry latent statistics.

    Every BatchNorm1d/2d/3d, GroupNorm, LayerNorm, RMSNorm and InstanceNorm1d/2d/3d, and the
    FrozenBatchNorm2d of torchvision, becomes a :class:`LatentNorm` at the same place. Weights, biases
    and population statistics are kept, under the same ``state_dict`` keys, and hooks as well; without
    latents the copy computes what the original computes. The original is not touched. A layer that
    is registered at several places, or called several times, stays one layer with one shift and
    scale. :func:`pyronorm.conversion_report` tells what has become of each layer.

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
        example_input: a batch as the network takes it; needed for :class:`~pyronorm.normalizers.Weight`
            and :class:`~pyronorm.normalizers.Analytic`, which have to know the layers before each
            normalization.

    Returns:
        A new module of the network's class (or a :class:`LatentNorm`, if ``network`` is itself a
        normalization layer).

    Raises:
        ConversionError: if there is nothing to convert, or a layer that cannot be converted; the
            message names it. Nothing is skipped silently.
        OptionError: if ``only`` matches no layer, or ``example_input`` is missing.

    Example:
        >>> network = convert(torch.nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> network[1]
        LatentNorm(Batch(eps=1e-05), num_channels=8)
    """
    _refuse_lazy(network)
    targets = _targets(network, only)
    for name, module in targets.items():
        refuse_unconvertible(name, module)
    new = _copy(network)
    old = {name: new.get_submodule(name) for name in targets}
    feeding: dict[str, str] = {}
    if isinstance(normalizer, (Weight, Analytic)) and example_input is None:
        raise OptionError(
            f"convert: the {type(normalizer).__name__} normalizer needs example_input, a batch as the "
            "network takes it, to follow the network up to each normalization."
        )
    if isinstance(normalizer, Weight) and example_input is not None:
        feeding = find_feeding_layers(network, list(targets), example_input)
    gone: list[nn.Module] = []
    for name, module in old.items():
        if any(module is m for m in gone):
            continue  # registered at two places, and replaced at both
        linear = new.get_submodule(feeding[name]) if name in feeding else None
        layer = _build(name, module, normalizer, linear)
        layer.linear_name = feeding.get(name, "")
        new = _replace(new, module, layer)
        gone.append(module)
        if linear is not None:
            new = _replace(new, linear, nn.Identity(), keep_in=new.get_submodule(name))
            gone.append(linear)
    _refuse_stray_references(new, gone)
    keep_latents_in_transformers(new)
    if isinstance(normalizer, Analytic) and example_input is not None:
        _link(network, new, targets, normalizer, example_input)
    stamp_statistics(new)
    watch_loading(new)
    return new


def _targets(network: nn.Module, only: Iterable[str] | None) -> dict[str, nn.Module]:
    # A module registered at two places appears under both names.
    modules = network.named_modules(remove_duplicate=False)
    candidates = {n: m for n, m in modules if is_normalization(m)}
    if not candidates:
        raise ConversionError(
            f"convert: {type(network).__name__} has no normalization layer. Convertible are "
            f"{CONVERTIBLE}."
        )
    if only is None:
        return candidates
    chosen: dict[str, nn.Module] = {}
    for pattern in [only] if isinstance(only, str) else list(only):
        found = {n: m for n, m in candidates.items() if fnmatchcase(n, pattern)}
        if not found:
            raise OptionError(
                f"convert: only={pattern!r} matches no normalization layer; there are "
                f"{', '.join(repr(n) for n in candidates)}."
            )
        chosen.update(found)
    return {n: m for n, m in candidates.items() if n in chosen}


def _refuse_lazy(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise ConversionError(
                f"convert: layer {name!r} ({type(module).__name__}) is lazy: run the network once, "
                "so that it knows its shapes, then convert."
            )


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except RuntimeError as error:  # torch copies no tensor that was computed from parameters
        for name, module in network.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    raise ConversionError(
                        f"convert: layer {name or '(the network itself)'!r} "
                        f"({type(module).__name__}) cannot be copied: its {key!r} is computed from "
                        "parameters and kept. If that comes from torch.nn.utils.weight_norm or "
                        "spectral_norm, use those of torch.nn.utils.parametrizations instead, or "
                        "remove_weight_norm(layer) before converting."
                    ) from error
        raise ConversionError(
            f"convert: {type(network).__name__} cannot be copied (copy.deepcopy): {error}"
        ) from error


def _build(
    name: str, old: nn.Module, normalizer: Normalizer | None, linear: nn.Module | None
) -> LatentNorm:
    """Make the latent layer that takes the place of ``old``, with its parameters and buffers."""
    source = kind_of(old)
    own = source.normalizer
    if isinstance(own, Layer) and own.normalized_shape is not None and normalizer is not None:
        raise ConversionError(
            f"convert: layer {name!r} (LayerNorm over {own.normalized_shape}) has a weight per "
            "position, which no other normalizer can take over. Leave it out with only=[...]."
        )
    if normalizer is not None:
        own = normalizer if own.eps is None else normalizer.adapted(own.eps)
    try:
        new = LatentNorm(
            own,
            source.num_channels,
            affine=False,
            channel_last=source.channel_last,
            linear=linear,
        )
    except OptionError as error:
        raise ConversionError(f"convert: layer {name!r}: {error}") from error
    new.name, new.original = name or "(network)", type(old).__name__
    reference = _reference_tensor(old, linear)
    if reference is not None:
        new.to(device=reference.device)
        for key, buffer in new._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                new._buffers[key] = buffer.to(reference.dtype)
    carry_affine(old, new)
    carry_statistics(old, source, new)
    carry_hooks(old, new)
    if linear is not None:
        linear.register_parameter("bias", None)  # the normalizer cancels it
    return new.train(old.training)


def _reference_tensor(old: nn.Module, linear: nn.Module | None) -> Tensor | None:
    for module in (old, linear):
        if module is not None:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    return tensor
    return None


@torch.no_grad()
def _link(
    network: nn.Module,
    new: nn.Module,
    targets: dict[str, nn.Module],
    normalizer: Analytic,
    example_input: Tensor,
) -> None:
    """Give analytic layers the network before them, and let them start where the old network was."""
    calls = trace(network, example_input, whole=list(targets))
    first: dict[int, str] = {}  # a module registered at two places is traced under its first name
    for name, old in targets.items():
        first.setdefault(id(old), name)
    layers = {name: new.get_submodule(name) for name in first.values()}
    for name, layer in layers.items():
        assert isinstance(layer, LatentNorm)
        layer.propagation = build_propagation(calls, name, new, *normalizer.input_statistics)
    for name, layer in layers.items():
        assert isinstance(layer, LatentNorm)
        carry_start(targets[name], layer)


def _replace(
    root: nn.Module, old: nn.Module, new: nn.Module, keep_in: nn.Module | None = None
) -> nn.Module:
    """Put ``new`` wherever ``old`` is registered, except in ``keep_in``."""
    if root is old:
        return new
    for parent in list(root.modules()):
        for child, module in parent._modules.items():
            if module is old and parent is not keep_in:
                parent._modules[child] = new
    return root


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
