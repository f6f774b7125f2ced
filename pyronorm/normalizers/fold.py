"""The affine maps of all layers with the latents in them, in one kernel instead of one per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyronorm.normalizers.base import LatentNorm

__all__ = ["folded"]


def folded(
    latents: Mapping[LatentNorm, tuple[Tensor, Tensor]],
    shift: Tensor | None,
    scale: Tensor | None,
) -> dict[LatentNorm, tuple[Tensor, Tensor]]:
    """Fold one draw into the affine maps of all layers at once, as each layer would on its own.

    Args:
        latents: those of each layer, in the order of the channels.
        shift: packed, of all layers; None for neutral ones.
        scale: packed, of all layers.

    Returns:
        Weight and bias of each layer; nothing where layers are not alike: without weight or bias,
        with other axes than the channel's, of several precisions or devices; and for a draw per
        example.
    """
    if shift is None or scale is None or shift.ndim != 1 or len(latents) < 2:
        return {}
    gains, offsets, kinds = [], [], set()
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
    sizes = [len(gain) for gain in gains]
    pairs = zip(weight.split(sizes), bias.split(sizes), strict=True)
    return dict(zip(latents, pairs, strict=True))
