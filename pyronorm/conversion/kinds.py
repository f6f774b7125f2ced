"""Which original layers can be converted, and what each of them is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from pyronorm.errors import ConversionError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.batch import Batch, Population
from pyronorm.normalizers.group import Group, Instance, Layer
from pyronorm.normalizers.rms import RMS

__all__ = [
    "CONVERTIBLE",
    "Kind",
    "class_name",
    "is_normalization",
    "kind_of",
    "refuse_unconvertible",
]

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CHANNEL_LAST = (nn.LayerNorm, nn.RMSNorm)
_TORCH = (*_BATCH, *_INSTANCE, nn.GroupNorm, *_CHANNEL_LAST)
_FROZEN = "FrozenBatchNorm2d"

CONVERTIBLE = ", ".join([*(kind.__name__ for kind in _TORCH), f"{_FROZEN} of torchvision"])
"""The convertible layers, for messages."""

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class Kind:
    """What an original layer is.

    Attributes:
        normalizer: the one that does the same.
        num_channels: how many channels have statistics.
        channel_last: whether they are on the last axis.
        has_population: whether the layer holds population statistics that have seen data.
        frozen: whether weight and bias are buffers, which are not trained.
    """

    normalizer: Normalizer
    num_channels: int
    channel_last: bool = False
    has_population: bool = False
    frozen: bool = False


def kind_of(module: nn.Module) -> Kind:
    """Say what a convertible layer is.

    Args:
        module: a layer that :func:`refuse_unconvertible` lets pass.
    """
    if isinstance(module, nn.GroupNorm):
        return Kind(Group(module.num_groups, eps=module.eps), module.num_channels)
    if isinstance(module, nn.LayerNorm):
        shape = tuple(module.normalized_shape)
        if len(shape) > 1:
            return Kind(Layer(eps=module.eps, normalized_shape=shape), shape[0])
        return Kind(Layer(eps=module.eps), shape[0], channel_last=True)
    if isinstance(module, nn.RMSNorm):
        return Kind(RMS(eps=module.eps), module.normalized_shape[0], channel_last=True)
    if isinstance(module, _INSTANCE):
        return Kind(Instance(eps=module.eps), module.num_features)
    if isinstance(module, _BATCH):
        seen = module.num_batches_tracked is not None and int(module.num_batches_tracked) > 0
        return Kind(Batch(eps=module.eps), module.num_features, has_population=seen)
    channels = module.get_buffer("running_mean").numel()
    eps = float(getattr(module, "eps"))  # noqa: B009  (torch types attributes as modules)
    return Kind(Population(eps=eps), channels, has_population=True, frozen=True)


def is_normalization(module: nn.Module) -> bool:
    """Whether a module is, or calls itself, a normalization layer.

    Known kinds, their subclasses, and whatever has "Norm" in its name: better refused than skipped.
    """
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, *_CHANNEL_LAST)):
        return True
    if isinstance(module, LatentNorm):
        return True
    kind = type(module)
    if kind.__module__.startswith("torch.nn.utils"):
        return parametrize.is_parametrized(module) and "Norm" in kind.__name__
    leaf = next(module.children(), None) is None
    return leaf and "Norm" in class_name(module)


def refuse_unconvertible(name: str, module: nn.Module) -> None:
    """Refuse a normalization layer that cannot be converted without changing what it does.

    Args:
        name: the layer's name, for the message.
        module: the layer.

    Raises:
        ConversionError: saying which layer, why, and what to do.
    """
    reason = _reason(module)
    if reason is not None:
        raise ConversionError(
            f"convert: layer {name or '(the network itself)'!r} ({class_name(module)}) {reason}. "
            "To leave it as it is, name the layers to convert with only=[...]."
        )


def _reason(module: nn.Module) -> str | None:
    kind = type(module)
    if isinstance(module, LatentNorm):
        return "is converted already; convert the original network instead"
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by torch.jit; convert the network before compiling it"
    if parametrize.is_parametrized(module):
        tensors = " and ".join(repr(key) for key in module.parametrizations)  # type: ignore[union-attr]
        return (
            "is parametrized, and the conversion would lose that. Write the present values into the "
            f"layer, by torch.nn.utils.parametrize.remove_parametrizations(layer, {tensors})"
        )
    if isinstance(module, nn.SyncBatchNorm):
        return (
            "shares statistics between processes; rebuild the network with BatchNorm1d/2d/3d "
            "before converting"
        )
    if kind.__name__ == _FROZEN and not _is_frozen(module):
        return f"is of {kind.__module__}, and only the one of torchvision.ops is known"
    if kind not in _TORCH and not _is_frozen(module):
        return f"is not one of the convertible layers {CONVERTIBLE}"
    return _unusual_settings(module) or _unusual_contents(module)


def _unusual_settings(module: nn.Module) -> str | None:
    if isinstance(module, _BATCH) and not module.track_running_stats:
        return (
            "has track_running_stats=False: it has no population statistics. Build it with "
            "track_running_stats=True"
        )
    if isinstance(module, _INSTANCE) and module.track_running_stats:
        return (
            "has track_running_stats=True: it is two different layers in training and evaluation. "
            "Build it with track_running_stats=False"
        )
    if isinstance(module, _CHANNEL_LAST) and math.prod(module.normalized_shape) == 1:
        return "normalizes over a single value"
    if isinstance(module, nn.RMSNorm) and len(module.normalized_shape) > 1:
        return (
            f"normalizes over the axes {tuple(module.normalized_shape)}; only a normalized_shape of "
            "one axis, the channels, is supported"
        )
    return None


def _unusual_contents(module: nn.Module) -> str | None:
    """What somebody has put into a layer of a known kind, and a new layer would not have."""
    if "forward" in vars(module):
        return "has had its forward replaced, which the conversion would lose. Undo that first"
    known = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    extra = [k for k in (*module._parameters, *module._buffers, *module._modules) if k not in known]
    if extra:
        return (
            f"holds {extra[0]!r}, which a {class_name(module)} does not have and the conversion "
            "would lose. Remove it first (after torch.nn.utils.weight_norm: remove_weight_norm)"
        )
    if any(getattr(module, hooks) for hooks in _STATE_HOOKS):
        return "has hooks on its state dict, which cannot be carried over. Remove them first"
    return None


def _is_frozen(module: nn.Module) -> bool:
    """Whether it is torchvision's FrozenBatchNorm2d; torchvision is not imported for that."""
    kind = type(module)
    return (
        kind.__name__ == _FROZEN
        and kind.__module__.partition(".")[0] == "torchvision"
        and set(module._buffers) >= {"weight", "bias", "running_mean", "running_var"}
        and hasattr(module, "eps")
    )


def class_name(module: nn.Module) -> str:
    """The name of a module's class, also of one compiled by torch.jit."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    return type(module).__name__
