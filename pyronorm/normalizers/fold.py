"""Affine maps with the latents in them: of a layer, and of all layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pyronorm.normalizers.base import LatentNorm

__all__ = ["Packed", "fold", "fold_all"]


class Packed(Mapping[nn.Module, tuple[Tensor, Tensor]]):
    """Shift and scale of each layer, cut out of those of all layers when one is asked for.

    As a rule none is: layers take their part of :func:`fold_all`.

    Args:
        layers: in the order of the channels.
        shift: packed, of all layers.
        scale: packed, of all layers.
    """

    def __init__(self, layers: Sequence[LatentNorm], shift: Tensor, scale: Tensor) -> None:
        self._layers = layers
        self._packed = shift, scale
        self._recorded = torch.is_grad_enabled()
        self._pairs: dict[nn.Module, tuple[Tensor, Tensor]] | None = None

    def __getitem__(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        if self._pairs is None:
            sizes = [layer.num_channels for layer in self._layers]
            with torch.set_grad_enabled(self._recorded):  # a checkpoint may ask where it is off
                shifts, scales = (p.split(sizes, -1) for p in self._packed)
            self._pairs = dict(zip(self._layers, zip(shifts, scales, strict=True), strict=True))
        return self._pairs[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def fold(layer: LatentNorm, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map of a layer with latents in it.

    Args:
        layer: the layer.
        shift: shape ``(channel,)``, or ``(batch or 1, channel)``.
        scale: of the same shape.

    Returns:
        Weight and bias, of the shape of the latents.
    """
    gain, offset = layer.gain, layer.offset
    if gain is None:
        bias = scale * shift
        return scale, bias if offset is None else offset + bias
    if extra := (1,) * (gain.ndim - 1):  # a layer norm over (channel, *spatial)
        shift, scale = shift.view(shift.shape + extra), scale.view(scale.shape + extra)
    weight = gain * scale
    if offset is None:
        return weight, weight * shift
    return weight, torch.addcmul(offset, weight, shift)


def fold_all(
    latents: Mapping[nn.Module, tuple[Tensor, Tensor]],
    shift: Tensor | None,
    scale: Tensor | None,
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Those of all layers, in two kernels instead of two for each.

    Args:
        latents: those of each layer, in the order of the channels.
        shift: packed, of all layers; None for neutral ones.
        scale: packed, of all layers.

    Returns:
        Weight and bias of each layer, of the shape of its latents; nothing where layers are not alike:
        without weight or bias, with other axes than the channel's, of several precisions or devices.
    """
    if shift is None or scale is None or len(latents) < 2:
        return {}
    layers: list[Any] = [*latents]
    gains = [layer.gain for layer in layers]
    offsets = [layer.offset for layer in layers]
    each = [*gains, *offsets]
    if any(p is None or p.ndim != 1 for p in each) or len({(p.dtype, p.device) for p in each}) > 1:
        return {}
    weight = torch.cat(gains) * scale
    bias = torch.addcmul(torch.cat(offsets), weight, shift)
    sizes = [gain.shape[0] for gain in gains]
    pairs = zip(weight.split_with_sizes(sizes, -1), bias.split_with_sizes(sizes, -1), strict=True)
    return dict(zip(latents, pairs, strict=True))
