"""Standard deviation of one example, without taking off the mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyronorm.checks import NotNegative
from pyronorm.errors import ShapeError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.kernels import affine_each

__all__ = ["Deviation"]


@dataclass(frozen=True)
class Deviation(Normalizer):
    r"""Standard deviation of each example over all channels; no mean is taken off.

    .. math::
        \hat x = x / \sqrt{s^2 + \epsilon}

    with :math:`s^2` the *unbiased* variance. On a channel-last input it runs over the last axis only,
    each position for itself; on a channel-first input over channels and positions. It is what timm
    calls SimpleNorm.

    Args:
        eps: added to the variance; None takes the converted layer's own.
        per_position: on a channel-first input too, each position for itself.
    """

    eps: NotNegative | None = None
    per_position: bool = False

    def describe(self, layer: LatentNorm) -> str:
        """Deviation of each example, or of each of its positions."""
        positions = layer.channel_last or self.per_position
        return f"each {'position' if positions else 'example'}, deviation"

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Divide each example by its standard deviation."""
        one = torch.ones(1, x.shape[1], device=x.device) if weight is None else weight[None]
        zero = torch.zeros_like(one) if bias is None else bias[None]
        return self.normalize_each(layer, x, one, zero)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize with an affine map per example."""
        dims = (1,) if layer.channel_last or self.per_position else tuple(range(1, x.ndim))
        if math.prod([x.shape[d] for d in dims]) < 2:
            raise ShapeError(
                f"{layer.name}: a deviation needs at least 2 values, got an input of shape "
                f"{tuple(x.shape)}."
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = wide * torch.rsqrt(wide.var(dims, keepdim=True) + layer.eps)
        return affine_each(y, weight.to(y.dtype), bias.to(y.dtype)).to(x.dtype)
