"""What torch's own normalization layers are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from pyronorm.conversion.kind import Kind
from pyronorm.errors import ConversionError
from pyronorm.normalizers.batch import Batch
from pyronorm.normalizers.group import Group, Instance, Layer
from pyronorm.normalizers.rms import RMS
from pyronorm.normalizers.sync_batch import SyncBatch

__all__ = ["TORCH_LAYERS"]


def _batch(layer: Any) -> Kind:
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        raise ConversionError(
            "has track_running_stats=False: it has no population statistics. Build it with "
            "track_running_stats=True"
        )
    count = layer.num_batches_tracked
    seen = count is not None and int(count) > 0
    return Kind(
        Batch(eps=layer.eps), layer.num_features, has_population=seen, ranks=_ranks(layer, (2, 3))
    )


def _sync(layer: Any) -> Kind:
    if layer.process_group is not None:
        raise ConversionError(
            "shares statistics within a group of processes; only those of all are supported: "
            "process_group=None"
        )
    kind = _batch(layer)
    return replace(kind, normalizer=SyncBatch(eps=layer.eps))


def _ranks(layer: nn.Module, of_1d: tuple[int, ...]) -> tuple[int, ...] | None:
    """The inputs that a layer for 1, 2 or 3 spatial axes takes, by the class it derives from."""
    for ranks, kinds in (
        (of_1d, (nn.BatchNorm1d, nn.InstanceNorm1d)),
        ((4,), (nn.BatchNorm2d, nn.InstanceNorm2d)),
        ((5,), (nn.BatchNorm3d, nn.InstanceNorm3d)),
    ):
        if isinstance(layer, kinds):
            return ranks
    return None


def _instance(layer: Any) -> Kind:
    if layer.track_running_stats:
        raise ConversionError(
            "has track_running_stats=True: it is two different layers in training and evaluation. "
            "Build it with track_running_stats=False"
        )
    return Kind(
        Instance(eps=layer.eps), layer.num_features, ranks=_ranks(layer, (3,)), unbatched=True
    )


def _layer(layer: Any) -> Kind:
    shape = _shape(layer)
    if len(shape) > 1:
        return Kind(
            Layer(eps=layer.eps, normalized_shape=shape),
            shape[0],
            ranks=tuple(range(len(shape) + 1, len(shape) + 5)),
            unbatched=True,
            fixed=f"normalizes over {shape} with a weight per position",
        )
    return Kind(Layer(eps=layer.eps), shape[0], channel_last=True, unbatched=True)


def _rms(layer: Any) -> Kind:
    shape = _shape(layer)
    if len(shape) > 1:
        raise ConversionError(
            f"normalizes over the axes {shape}; only a normalized_shape of one axis, the channels, is "
            "supported"
        )
    return Kind(RMS(eps=layer.eps), shape[0], channel_last=True, unbatched=True)


def _shape(layer: Any) -> tuple[int, ...]:
    shape = tuple(layer.normalized_shape)
    if math.prod(shape) == 1:
        raise ConversionError("normalizes over a single value")
    return shape


def _group(layer: Any) -> Kind:
    return Kind(Group(layer.num_groups, eps=layer.eps), layer.num_channels)


TORCH_LAYERS: dict[type[nn.Module], Callable[[Any], Kind]] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch),
    nn.SyncBatchNorm: _sync,
    nn.GroupNorm: _group,
    nn.LayerNorm: _layer,
    nn.RMSNorm: _rms,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance),
}
