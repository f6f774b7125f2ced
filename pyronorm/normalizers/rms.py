"""Root mean square of one example: RMS normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyronorm.checks import NotNegative
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.kernels import affine_each

__all__ = ["RMS"]

# Before torch fused it, the kernel added squares up in the precision of its input.
_FUSED = hasattr(torch, "_fused_rms_norm")


@dataclass(frozen=True)
class RMS(Normalizer):
    r"""Root mean square of each example over all channels; no mean is taken off.

    .. math::
        \hat x = x / \sqrt{\tfrac{1}{C} \sum_c x_c^2 + \epsilon}

    The reference mean is 0. On a channel-last input, as in transformers, the mean of squares runs
    over the last axis only, each position for itself: what :class:`torch.nn.RMSNorm` does. On a
    channel-first input ``(batch, channel, *spatial)`` it runs over channels and positions.

    Args:
        eps: added to the mean of squares; None takes the converted layer's own, and where that has
            none either, the machine epsilon of the computation as torch.nn.RMSNorm does (that of
            float32 for inputs in half precision).
        per_position: on a channel-first input too, each position for itself.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (NeurIPS 2019), eq. 4.
    """

    eps: NotNegative | None = None
    per_position: bool = False
    handles_channel_last: ClassVar[bool] = True

    def describe(self, layer: LatentNorm) -> str:
        """Mean of squares of each example, or of each of its positions."""
        positions = layer.channel_last or self.per_position
        return f"each {'position' if positions else 'example'}, mean square"

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Divide each example by its root mean square."""
        if self.per_position and not layer.channel_last:
            return self._last(layer, x.movedim(1, -1), weight, bias).movedim(-1, 1)
        if layer.channel_last:
            return self._last(layer, x, weight, bias)
        inverse = self._inverse(x)[:, None]
        weight = inverse if weight is None else weight * inverse
        if bias is None:
            return (x * weight.view(weight.shape + (1,) * (x.ndim - 2))).to(x.dtype)
        return affine_each(x, weight, bias[None])

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize with an affine map per example."""
        if not (layer.channel_last or self.per_position):
            return affine_each(x, weight * self._inverse(x)[:, None], bias)
        y = self.normalize(layer, x, None, None)
        return affine_each(y, weight, bias, channel_last=layer.channel_last)

    def _last(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Each position of a channel-last input for itself."""
        # Torch's kernel has no bias, and falls back to a slow one if dtypes differ.
        wide = x if _FUSED else x.to(torch.promote_types(x.dtype, torch.float32))
        weight = None if weight is None else weight.to(wide.dtype)
        y = F.rms_norm(wide, (layer.num_channels,), weight, self.eps)
        return (y if bias is None else y + bias).to(x.dtype)

    def _inverse(self, x: Tensor) -> Tensor:
        """One over the root mean square of each example, shape ``(batch,)``."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), dtype=dtype)
        eps = torch.finfo(dtype).eps if self.eps is None else self.eps
        return torch.rsqrt(norm.square() / math.prod(x.shape[1:]) + eps)
