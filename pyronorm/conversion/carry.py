"""What a latent layer takes over from the layer that it replaces."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyronorm.conversion.kinds import Kind, kind_of
from pyronorm.errors import ConversionError
from pyronorm.normalizers.analytic import Analytic
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.batch import Population
from pyronorm.normalizers.weight import Weight

__all__ = ["carry_affine", "carry_hooks", "carry_start", "carry_statistics"]

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def carry_affine(old: nn.Module, new: LatentNorm) -> None:
    """Weight and bias: the same tensors, trained or not as before."""
    for key in ("weight", "bias"):
        if key in old._buffers:  # a frozen layer
            delattr(new, key)
            new.register_buffer(key, old._buffers[key])
        else:
            setattr(new, key, getattr(old, key, None))


def carry_hooks(old: nn.Module, new: LatentNorm) -> None:
    """Forward, pre-forward and backward hooks, with their options."""
    for hooks in _HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))
    new._is_full_backward_hook = old._is_full_backward_hook


def carry_statistics(old: nn.Module, source: Kind, new: LatentNorm) -> None:
    """Give the new layer the population statistics of the old one, in its own terms.

    Args:
        old: the original layer.
        source: what kind of layer that is.
        new: the layer that takes its place; its buffers change.

    Raises:
        ConversionError: if the new layer needs population statistics and the old one has none.
    """
    if isinstance(new.normalizer, Population) and not source.has_population:
        raise ConversionError(
            f"convert: layer {new.name!r} ({type(old).__name__}) has no population statistics for "
            "the Population normalizer: train the network with batch normalization first."
        )
    mean, var = old._buffers.get("running_mean"), old._buffers.get("running_var")
    if mean is None or var is None:
        return
    if new.normalizer.keeps_population:
        new._buffers["running_mean"], new._buffers["running_var"] = mean, var
        if not source.frozen:
            new._buffers["num_batches_tracked"] = old._buffers["num_batches_tracked"]
        elif isinstance(new.normalizer, Population):
            _keep_keys(old, new)
        else:
            new.state("num_batches_tracked").fill_(1)  # not counted, but known
    elif isinstance(new.normalizer, Weight) and source.has_population:
        linear: Any = new.linear
        norm = new.normalizer.norm(linear)
        bias = 0.0 if linear.bias is None else linear.bias
        std = (var + (source.normalizer.eps or 0.0)).sqrt()
        new._buffers["start_mean"] = ((mean - bias) / norm).detach()
        new._buffers["start_std"] = (std / norm).detach()


def carry_start(old: nn.Module, new: LatentNorm) -> None:
    """Let an Analytic layer, propagation and all, start as the population statistics of the old one.

    Args:
        old: the original layer; nothing happens if it has no population statistics.
        new: the layer that takes its place; its buffers change.
    """
    source = kind_of(old)
    mean, var = old._buffers.get("running_mean"), old._buffers.get("running_var")
    if not isinstance(new.normalizer, Analytic) or not source.has_population:
        return
    if mean is not None and var is not None:
        own_mean, own_std = new.normalizer.moments(new, mean.new_empty(0))
        new.state("start_mean").copy_((mean - own_mean) / own_std)
        new.state("start_std").copy_((var + (source.normalizer.eps or 0.0)).sqrt() / own_std)


def _keep_keys(old: nn.Module, new: LatentNorm) -> None:
    """Keep the buffers of a frozen layer, and that it takes the state dict of a BatchNorm too."""
    new._buffers = {key: new._buffers[key] for key in old._buffers}
    new.register_load_state_dict_pre_hook(_drop_num_batches_tracked)  # type: ignore[no-untyped-call]


def _drop_num_batches_tracked(module: nn.Module, state: Any, prefix: str, *args: Any) -> None:
    state.pop(f"{prefix}num_batches_tracked", None)
