"""Statistics of one example: group, layer and instance normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyronorm.checks import Count, NotNegative
from pyronorm.errors import OptionError, ShapeError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.kernels import affine_each, float32_affine, under_autocast

__all__ = ["Group", "Instance", "Layer"]


def _readable(x: Tensor) -> Tensor:
    """``x`` in a layout that torch's group norm can ask for: inside of vmap channels-last is none."""
    if x.ndim == 4 and not torch.compiler.is_compiling():
        try:
            x.is_contiguous(memory_format=torch.channels_last)
        except RuntimeError:
            return x.contiguous()
    return x


def _match(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    # Group and layer kernels want the input's dtype; under autocast torch sees to it, in float32.
    device = x.device.type
    if parameter is None:
        return None
    if under_autocast(device):
        return parameter
    return parameter.to(x.dtype)


@dataclass(frozen=True)
class Group(Normalizer):
    r"""Mean and biased variance of each example over a group of channels and all positions.

    Args:
        num_groups: number of groups; divides the number of channels.
        eps: added to the variance; None takes the converted layer's own.

    Source: Wu & He, "Group Normalization" (ECCV 2018).
    """

    num_groups: Count
    eps: NotNegative | None = None

    def buffers(self, num_channels: Count) -> dict[str, Tensor]:
        """None; checks that the groups divide the channels."""
        if num_channels % self.num_groups:
            raise OptionError(
                f"Group: num_groups={self.num_groups} does not divide {num_channels} channels."
            )
        return {}

    def describe(self, layer: LatentNorm) -> str:
        """Each example, and how many groups."""
        return f"each example, {self.num_groups} group{'s' if self.num_groups > 1 else ''}"

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize each example by groups."""
        values = math.prod(x.shape[1:]) // self.num_groups
        if values < 2:
            raise ShapeError(
                f"{layer.name}: group statistics need at least 2 values per group, got {values} "
                f"(input of shape {tuple(x.shape)}, {self.num_groups} groups). Use fewer groups."
            )
        weight, bias = _match(weight, x), _match(bias, x)
        return F.group_norm(_readable(x), self.num_groups, weight, bias, layer.eps)


@dataclass(frozen=True)
class Layer(Normalizer):
    r"""Mean and biased variance of each example over all channels.

    On a channel-first input ``(batch, channel, *spatial)`` the statistics run over channels and
    positions (one group). On a channel-last input, as in transformers, they run over the last axis
    only, each position for itself: what :class:`torch.nn.LayerNorm` does.

    Args:
        eps: added to the variance; None takes the converted layer's own.
        normalized_shape: set by :func:`pyronorm.convert` for a torch.nn.LayerNorm over several axes
            ``(channel, *spatial)``, the last of the input, whose weight has that shape; the latents
            belong to the channels.

    Source: Ba, Kiros & Hinton, "Layer Normalization" (2016).
    """

    eps: NotNegative | None = None
    per_position: bool = False
    normalized_shape: tuple[Count, ...] | None = None
    handles_channel_last: ClassVar[bool] = True

    def channel_axis(self, layer: LatentNorm) -> int:
        """The first axis of :attr:`normalized_shape`, or as the layout says."""
        if self.normalized_shape is not None:
            return -len(self.normalized_shape)
        return -1 if layer.channel_last else 1

    def describe(self, layer: LatentNorm) -> str:
        """Each example, or on channel-last inputs each of its positions."""
        return "each position" if layer.channel_last or self.per_position else "each example"

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize each example over all channels."""
        weight, bias = _match(weight, x), _match(bias, x)
        if self.normalized_shape is not None:
            if tuple(x.shape[-len(self.normalized_shape) :]) != self.normalized_shape:
                raise ShapeError(
                    f"{layer.name}: expected an input of shape (batch, ..., "
                    f"{', '.join(map(str, self.normalized_shape))}), got {tuple(x.shape)}."
                )
            shape = self.normalized_shape
            if weight is not None and weight.shape != shape:  # latents without an affine map
                weight, bias = (
                    p.reshape(p.shape + (1,) * (len(shape) - 1)).expand(shape)
                    for p in (weight, bias)
                    if p is not None
                )
            return F.layer_norm(x, shape, weight, bias, layer.eps)
        if layer.channel_last:
            return F.layer_norm(x, (layer.num_channels,), weight, bias, layer.eps)
        if self.per_position:
            last = x.movedim(1, -1)
            return F.layer_norm(last, last.shape[-1:], weight, bias, layer.eps).movedim(-1, 1)
        return F.group_norm(_readable(x), 1, weight, bias, layer.eps)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize, then apply an affine map per example."""
        y = self.normalize(layer, x, None, None)
        if self.normalized_shape is not None:  # positions may come before the channels, and after
            before = (1,) * (x.ndim - 1 - len(self.normalized_shape))
            after = (1,) * (1 + len(self.normalized_shape) - weight.ndim)
            shape = (weight.shape[0], *before, *weight.shape[1:], *after)
            return torch.addcmul(bias.view(shape), y, weight.view(shape)).to(x.dtype)
        return affine_each(y, weight, bias, channel_last=layer.channel_last)


@dataclass(frozen=True)
class Instance(Normalizer):
    r"""Mean and biased variance of each example and channel over all positions.

    Args:
        eps: added to the variance; None takes the converted layer's own.

    Source: Ulyanov, Vedaldi & Lempitsky, "Instance Normalization" (2016).
    """

    eps: NotNegative | None = None

    def describe(self, layer: LatentNorm) -> str:
        """Each example and channel."""
        return "each example and channel"

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize each example and channel over its positions."""
        positions = math.prod(x.shape[2:])
        if positions < 2:
            raise ShapeError(
                f"{layer.name}: instance statistics need at least 2 positions per channel, got "
                f"{positions} (input of shape {tuple(x.shape)}). Use Group or Layer there."
            )
        if x.shape[0] == 0:  # torch's kernel fails
            return x
        weight, bias = float32_affine(x, weight, bias)
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, layer.eps)
