"""Statistics read off the weights: weight normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pyronorm.errors import ConversionError, StatisticsError
from pyronorm.layers.base import LatentNorm, Normalizer, affine_each
from pyronorm.stats import channel_moments

__all__ = ["Weight", "data_dependent_start", "is_linear"]

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_linear(module: nn.Module) -> bool:
    """Whether a :class:`Weight` normalizer can own this module (Linear, Conv1d, Conv2d, Conv3d)."""
    return isinstance(module, _LINEAR) and any(
        type(module).forward is kind.forward for kind in _LINEAR
    )


@dataclass(frozen=True)
class Weight(Normalizer):
    r"""Weight normalization: the statistics are a function of the weights, not of the data.

    The layer owns the linear or convolution layer before it, with weight ``v`` per output channel:

    .. math::
        \hat x = \left(\frac{v}{\lVert v\rVert} * x - \mu_0\right) / \sigma_0

    :math:`(\mu_0, \sigma_0)` are the buffers ``start_mean``, ``start_std``: 0 and 1, unless the layer
    is converted from population statistics (then it starts as the same function) or
    :func:`data_dependent_start` sets them. They stay fixed, while
    :math:`\lVert v\rVert` follows the weights. Everything folds into one convolution. A bias of the
    linear layer is dropped: the normalizer would cancel it.

    Args:
        eps: added to the squared norm, against a division by zero; None for 1e-12.

    Source: Salimans & Kingma, "Weight Normalization" (NeurIPS 2016), eq. 2.

    Departs from the paper: the data-dependent start is kept as reference statistics instead of being
    written into weight (g) and bias (b). The function is the same, at the start and in what it can
    learn; but shift and scale then act on an input of mean 0 and variance 1, as they do in every
    other normalizer, and a trained layer's weight and bias carry over unchanged.
    """

    eps: float | None = None
    handles_channel_last: ClassVar[bool] = True

    def buffers(self, num_channels: int) -> dict[str, Tensor]:
        """``start_mean`` and ``start_std``."""
        return {"start_mean": torch.zeros(num_channels), "start_std": torch.ones(num_channels)}

    def adapted(self, eps: float) -> Weight:
        """Itself: the ``eps`` of a converted layer belongs to a variance, not to a norm."""
        return self

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Apply the linear layer with the affine map folded into it."""
        mean, std = layer.state("start_mean"), layer.state("start_std")
        gain = 1 / std if weight is None else weight / std
        offset = -gain * mean if bias is None else bias - gain * mean
        return self._apply_linear(layer, x, gain, offset)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply the linear layer, then an affine map per example."""
        y = self.normalize(layer, x, None, None)
        return affine_each(y, weight, bias, channel_last=layer.channel_last)

    def _apply_linear(
        self, layer: LatentNorm, x: Tensor, gain: Tensor, bias: Tensor | None
    ) -> Tensor:
        linear = _linear_of(layer)
        v = linear.weight
        weight = v * (gain / self.norm(v)).view(-1, *(1,) * (v.ndim - 1))
        # Folded latents are float32 where the network is in half precision.
        weight, bias = weight.to(v.dtype), None if bias is None else bias.to(v.dtype)
        if isinstance(linear, _ConvNd):
            return linear._conv_forward(x, weight, bias)
        return F.linear(x, weight, bias)

    def norm(self, v: Tensor) -> Tensor:
        r""":math:`\lVert v\rVert` per output channel, shape ``(channel,)``."""
        eps = 1e-12 if self.eps is None else self.eps
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        return (v.flatten(1).square().sum(1) + eps).sqrt()

    def projection(self, layer: LatentNorm, x: Tensor) -> Tensor:
        r""":math:`\frac{v}{\lVert v\rVert} * x`, before any start statistics."""
        return self._apply_linear(layer, x, torch.ones_like(layer.state("start_std")), None)


def _linear_of(layer: LatentNorm) -> nn.Linear | _ConvNd:
    if layer.linear is None or not is_linear(layer.linear):
        raise ConversionError(
            f"{layer.name}: the Weight normalizer owns a Linear, Conv1d, Conv2d or Conv3d "
            f"(LatentNorm(..., linear=layer)), got {type(layer.linear).__name__}."
        )
    return layer.linear  # type: ignore[return-value]


@torch.no_grad()
def data_dependent_start(network: nn.Module, x: Tensor) -> None:
    r"""Set the start statistics of all weight normalizers from a batch of data.

    One forward pass; each layer takes mean and biased standard deviation of its projection
    :math:`\frac{v}{\lVert v\rVert} * x` over the batch, seeing its predecessors already started.
    Afterwards each layer's :math:`\hat x` has mean 0 and variance 1 on that batch. This writes
    buffers: it is an explicit call, made once, before training.

    Args:
        network: a network with Weight normalizers, changed in place.
        x: a batch as the network takes it, as large as is convenient (hundreds of examples).

    Raises:
        ConversionError: if the network has no Weight normalizer.
        StatisticsError: if a channel is constant or not finite on ``x``.

    Source: Salimans & Kingma (2016), section 3.
    """
    layers = [
        m
        for m in network.modules()
        if isinstance(m, LatentNorm) and isinstance(m.normalizer, Weight)
    ]
    if not layers:
        raise ConversionError("data_dependent_start: the network has no Weight normalizer.")
    handles = [layer.register_forward_pre_hook(_start) for layer in layers]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()


def _start(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, LatentNorm)
    assert isinstance(layer.normalizer, Weight)
    projection = layer.normalizer.projection(layer, args[0])
    if layer.channel_last:
        projection = projection.movedim(-1, 1)
    moments = channel_moments(projection)
    mean, var = moments.mean, moments.var
    if not bool((var > 0).all() & var.isfinite().all()):
        raise StatisticsError(
            f"{layer.name}: {int((~(var > 0)).sum())} of {layer.num_channels} channels are constant "
            "or not finite on the given batch, so they give no start statistics. Pass a batch of "
            "real data with at least two different examples."
        )
    layer.state("start_mean").copy_(mean)
    layer.state("start_std").copy_(var.sqrt())
