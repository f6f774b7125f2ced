"""Turn the normalization layers of any network into layers with latent statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.errors import ConversionError, OptionError
from pyronorm.layers.analytic import Analytic
from pyronorm.layers.base import LatentNorm, Normalizer
from pyronorm.layers.batch import Batch, Population
from pyronorm.layers.feeding import find_feeding_layers
from pyronorm.layers.freshness import stamp_statistics, watch_loading
from pyronorm.layers.group import Group, Instance, Layer
from pyronorm.layers.propagation import build_propagation
from pyronorm.layers.tracing import trace
from pyronorm.layers.weight import Weight

__all__ = ["convert"]

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CONVERTIBLE = (*_BATCH, *_INSTANCE, nn.GroupNorm, nn.LayerNorm)


def convert(
    network: nn.Module,
    normalizer: Normalizer | None = None,
    only: Iterable[str] | None = None,
    example_input: Tensor | None = None,
) -> nn.Module:
    r"""Return a copy of a network whose normalization layers carry latent statistics.

    Every BatchNorm1d/2d/3d, GroupNorm, LayerNorm and InstanceNorm1d/2d/3d becomes a
    :class:`LatentNorm` at the same place. Weights, biases and population statistics are kept, under
    the same ``state_dict`` keys; without latents the copy computes what the original computes. The
    original is not touched.

    Args:
        network: any module. It may hold its layers in any nesting.
        normalizer: None keeps each layer's own kind (batch statistics stay batch statistics). A
            normalizer, e.g. ``Group(8)``, replaces them all: weight and bias stay, population
            statistics stay where the new kind has them (from BatchNorm to
            :class:`~pyronorm.layers.Population`, :class:`~pyronorm.layers.Weight` or
            :class:`~pyronorm.layers.Analytic` the network keeps its function in evaluation mode; to
            other kinds it changes, and has to be trained).
        only: names of the layers to convert, as in ``network.named_modules()``; shell patterns such
            as ``"layer1.*"`` are allowed. The others stay as they are.
        example_input: a batch as the network takes it; needed for :class:`~pyronorm.layers.Weight`
            and :class:`~pyronorm.layers.Analytic`, which have to know the layers before each
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
        _refuse_unconvertible(name, module)
    new = copy.deepcopy(network)
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
        new = _replace(new, module, _build(name, module, normalizer, linear))
        gone.append(module)
        if linear is not None:
            new = _replace(new, linear, nn.Identity(), keep_in=new.get_submodule(name))
            gone.append(linear)
    _refuse_stray_references(new, gone)
    if isinstance(normalizer, Analytic) and example_input is not None:
        _link(network, new, targets, normalizer, example_input)
    stamp_statistics(new)
    watch_loading(new)
    return new


def _targets(network: nn.Module, only: Iterable[str] | None) -> dict[str, nn.Module]:
    # A module registered at two places appears under both names.
    modules = network.named_modules(remove_duplicate=False)
    candidates = {n: m for n, m in modules if _is_normalization(m)}
    if not candidates:
        raise ConversionError(
            f"convert: {type(network).__name__} has no normalization layer. Convertible are "
            f"{_names(_CONVERTIBLE)}."
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


def _is_normalization(module: nn.Module) -> bool:
    # Known kinds, their subclasses, and whatever calls itself so: better refused than skipped.
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
        return True
    kind = type(module)
    own = not kind.__module__.startswith("torch.nn.utils")
    leaf = next(module.children(), None) is None
    return isinstance(module, LatentNorm) or (leaf and own and "Norm" in kind.__name__)


def _refuse_unconvertible(name: str, module: nn.Module) -> None:
    kind = type(module)
    reason = None
    if isinstance(module, LatentNorm):
        reason = "is converted already; convert the original network instead"
    elif isinstance(module, nn.SyncBatchNorm):
        reason = (
            "shares statistics between processes; rebuild the network with BatchNorm1d/2d/3d "
            "before converting"
        )
    elif kind not in _CONVERTIBLE:
        reason = f"is not one of the convertible layers {_names(_CONVERTIBLE)}"
    elif kind in _BATCH and not module.track_running_stats:
        reason = (
            "has track_running_stats=False: it has no population statistics. Build it with "
            "track_running_stats=True"
        )
    elif kind in _INSTANCE and module.track_running_stats:
        reason = (
            "has track_running_stats=True: it is two different layers in training and evaluation. "
            "Build it with track_running_stats=False"
        )
    elif isinstance(module, nn.LayerNorm) and _is_lone_channel(module):
        reason = "normalizes over a single value"
    if reason is not None:
        raise ConversionError(
            f"convert: layer {name or '(the network itself)'!r} ({kind.__name__}) {reason}. To leave "
            "it as it is, name the layers to convert with only=[...]."
        )


def _is_lone_channel(module: nn.LayerNorm) -> bool:
    size = 1
    for length in module.normalized_shape:
        size *= length
    return size == 1


def _build(
    name: str, old: nn.Module, normalizer: Normalizer | None, linear: nn.Module | None
) -> LatentNorm:
    """Make the latent layer that takes the place of ``old``, with its parameters and buffers."""
    own, num_channels, channel_last = _own_normalizer(old)
    if isinstance(own, Layer) and own.normalized_shape is not None and normalizer is not None:
        raise ConversionError(
            f"convert: layer {name!r} (LayerNorm over {own.normalized_shape}) has a weight per "
            "position, which no other normalizer can take over. Leave it out with only=[...]."
        )
    kind = own if normalizer is None else normalizer.adapted(own.eps or 0.0)
    try:
        new = LatentNorm(kind, num_channels, affine=False, channel_last=channel_last, linear=linear)
    except OptionError as error:
        raise ConversionError(f"convert: layer {name!r}: {error}") from error
    new.weight, new.bias = getattr(old, "weight", None), getattr(old, "bias", None)
    new.name = name or "(network)"
    reference = _reference_tensor(old, linear)
    if reference is not None:
        new.to(device=reference.device)
        for key, buffer in new._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                new._buffers[key] = buffer.to(reference.dtype)
    _carry_statistics(old, new)
    if linear is not None:
        linear.register_parameter("bias", None)  # the normalizer cancels it
    for hooks in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks"):
        getattr(new, hooks).update(getattr(old, hooks))
    return new.train(old.training)


def _own_normalizer(module: nn.Module) -> tuple[Normalizer, int, bool]:
    """Return a layer's own kind, its number of channels and whether they are the last axis."""
    if isinstance(module, nn.GroupNorm):
        return Group(module.num_groups, eps=module.eps), module.num_channels, False
    if isinstance(module, nn.LayerNorm):
        shape = tuple(module.normalized_shape)
        if len(shape) == 1:
            return Layer(eps=module.eps), shape[0], True
        return Layer(eps=module.eps, normalized_shape=shape), shape[0], False
    assert isinstance(module, nn.modules.batchnorm._NormBase)
    own = Instance(eps=module.eps) if isinstance(module, _INSTANCE) else Batch(eps=module.eps)
    return own, module.num_features, False


def _reference_tensor(old: nn.Module, linear: nn.Module | None) -> Tensor | None:
    for module in (old, linear):
        if module is not None:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    return tensor
    return None


def _carry_statistics(old: nn.Module, new: LatentNorm) -> None:
    """Give the new layer the population statistics of the old one, in its own terms."""
    tracked = _is_tracked(old)
    if isinstance(new.normalizer, Population) and not tracked:
        raise ConversionError(
            f"convert: layer {new.name!r} ({type(old).__name__}) has no population statistics for "
            "the Population normalizer: train the network with batch normalization first."
        )
    if not isinstance(old, _BATCH):
        return
    assert old.running_mean is not None
    assert old.running_var is not None
    if new.normalizer.keeps_population:
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            new._buffers[key] = old._buffers[key]
    elif isinstance(new.normalizer, Weight) and tracked:
        linear: Any = new.linear
        norm = new.normalizer.norm(linear)
        bias = 0.0 if linear.bias is None else linear.bias
        new._buffers["start_mean"] = ((old.running_mean - bias) / norm).detach()
        new._buffers["start_std"] = ((old.running_var + old.eps).sqrt() / norm).detach()


@torch.no_grad()
def _link(
    network: nn.Module,
    new: nn.Module,
    targets: dict[str, nn.Module],
    normalizer: Analytic,
    example_input: Tensor,
) -> None:
    """Give analytic layers the network before them, and start where the old network was."""
    calls = trace(network, example_input, whole=list(targets))
    first: dict[int, str] = {}  # a module registered at two places is traced under its first name
    for name, old in targets.items():
        first.setdefault(id(old), name)
    for name in first.values():
        layer = new.get_submodule(name)
        assert isinstance(layer, LatentNorm)
        statistics = normalizer.input_statistics
        layer.propagation = build_propagation(calls, name, new, *statistics)
    for name in first.values():
        layer, old = new.get_submodule(name), targets[name]
        assert isinstance(layer, LatentNorm)
        assert isinstance(layer.normalizer, Analytic)
        if isinstance(old, _BATCH) and old.running_mean is not None and _is_tracked(old):
            assert old.running_var is not None
            mean, std = layer.normalizer.moments(layer, old.running_mean.new_empty(0))
            layer.state("start_mean").copy_((old.running_mean - mean) / std)
            layer.state("start_std").copy_((old.running_var + old.eps).sqrt() / std)


def _is_tracked(old: nn.Module) -> bool:
    """Whether it is a batch normalization that has seen a batch."""
    return isinstance(old, _BATCH) and int(old.num_batches_tracked or 0) > 0


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


def _names(kinds: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
