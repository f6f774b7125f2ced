"""Affine maps with the latents in them: of a layer, and of all layers at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pyronorm.normalizers.base import LatentNorm

__all__ = ["fold", "fold_all"]


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
    gains, offsets, kinds = [], [], set()
    layer: Any
    for layer in latents:
        gain, offset = layer.gain, layer.offset
        if gain is None or offset is None or gain.ndim != 1:
            return {}
        gains.append(gain)
        offsets.append(offset)
        kinds |= {(gain.dtype, gain.device), (offset.dtype, offset.device)}
    if len(kinds) > 1:
        return {}
    weight = torch.cat(gains) * scale
    bias = torch.addcmul(torch.cat(offsets), weight, shift)
    sizes = [gain.shape[0] for gain in gains]
    pairs = zip(weight.split(sizes, -1), bias.split(sizes, -1), strict=True)
    return dict(zip(latents, pairs, strict=True))
