"""Statistics read off the weights: weight normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pyronorm.checks import NotNegative
from pyronorm.errors import ConversionError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.kernels import affine_each
from pyronorm.normalizers.linear import TRANSPOSED, by_output, is_linear
from pyronorm.normalizers.origin import Origin
from pyronorm.normalizers.start import StartNormalizer

__all__ = ["Weight"]


@dataclass(frozen=True)
class Weight(StartNormalizer):
    r"""Weight normalization: the statistics are a function of the weights, not of the data.

    The layer owns the linear or convolution layer before it, with weight ``v`` per output channel:

    .. math::
        \hat x = \left(\frac{v}{\lVert v\rVert} * x - \mu_0\right) / \sigma_0

    :math:`(\mu_0, \sigma_0)` are the buffers ``start_mean``, ``start_std``: 0 and 1, unless the layer
    is converted from population statistics (then it starts as the same function) or
    :func:`pyronorm.data_dependent_start` or :func:`pyronorm.analytic_start` sets them. They stay
    fixed, while :math:`\lVert v\rVert` follows the weights. Everything folds into one convolution.
    A bias of the linear layer is dropped: the normalizer would cancel it.

    Args:
        eps: added to the squared norm, against a division by zero; None for 1e-12.

    Source: Salimans & Kingma, "Weight Normalization" (NeurIPS 2016), eq. 2.

    Departs from the paper: the data-dependent start is kept as reference statistics instead of being
    written into weight (g) and bias (b). The function is the same, at the start and in what it can
    learn; but shift and scale then act on an input of mean 0 and variance 1, as they do in every
    other normalizer, and a trained layer's weight and bias carry over unchanged.
    """

    eps: NotNegative | None = None
    handles_channel_last: ClassVar[bool] = True
    owns_linear: ClassVar[bool] = True
    needs_example: ClassVar[bool] = True

    @torch.no_grad()
    def adopt(self, layer: LatentNorm, origin: Origin) -> None:
        """Take in the linear layer, and start where the population statistics were."""
        layer.surroundings, linear = origin.take_linear()
        layer.add_module("linear", linear)
        like: Any = linear.weight
        for key in ("start_mean", "start_std"):
            layer._buffers[key] = layer.state(key).to(like)
        if origin.has_population and origin.mean is not None and origin.var is not None:
            norm = self.norm(linear)
            bias: Any = 0.0 if linear.bias is None else linear.bias
            std = (origin.var + (origin.eps)).sqrt()
            layer._buffers["start_mean"] = (origin.mean - bias) / norm
            layer._buffers["start_std"] = std / norm
        linear.register_parameter("bias", None)  # the normalizer cancels it

    def channel_axis(self, layer: LatentNorm) -> None:
        """None: the input is that of the linear layer."""

    def describe(self, layer: LatentNorm) -> str:
        """The weights of the linear layer, by its name in the original network."""
        return f"weights of {layer.surroundings or type(layer.part('linear')).__name__}"

    def adapted(self, eps: NotNegative) -> Weight:
        """Itself: the ``eps`` of a converted layer belongs to a variance, not to a norm."""
        return self

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Apply the linear layer with the affine map folded into it."""
        mean, std = layer.state("start_mean"), layer.state("start_std")
        gain = 1 / std if weight is None else weight / std
        offset = -gain * mean if bias is None else torch.addcmul(bias, gain, mean, value=-1)
        return self._apply_linear(layer, x, gain, offset)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply the linear layer, then an affine map per example."""
        y = self.normalize(layer, x, None, None)
        return affine_each(y, weight, bias, channel_last=layer.channel_last)

    def _apply_linear(
        self, layer: LatentNorm, x: Tensor, gain: Tensor, bias: Tensor | None
    ) -> Tensor:
        linear = _linear_of(layer)
        v = by_output(linear)
        factor = gain / self._norm(v)
        weight = (v * factor.view(*v.shape[:2], *(1,) * (v.ndim - 2))).flatten(0, 1)
        # Folded latents are float32 where the network is in half precision.
        weight, bias = weight.to(v.dtype), None if bias is None else bias.to(v.dtype)
        if isinstance(linear, nn.Linear):
            return F.linear(x, weight, bias)
        for kind, function in TRANSPOSED.items():
            if isinstance(linear, kind):
                groups = linear.groups
                weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
                places = (linear.stride, linear.padding, linear.output_padding, groups)
                y: Tensor = function(x, weight, bias, *places, linear.dilation)
                return y
        return linear._conv_forward(x, weight, bias)

    def reference(self, layer: LatentNorm, like: Tensor) -> tuple[Tensor, Tensor]:
        """Start statistics in the units of the linear layer's output (without its bias)."""
        norm = self.norm(_linear_of(layer)).to(like)
        return layer.state("start_mean").to(like) * norm, layer.state("start_std").to(like) * norm

    def norm(self, linear: nn.Module) -> Tensor:
        r""":math:`\lVert v\rVert` per output channel, shape ``(channel,)``."""
        return self._norm(by_output(linear))

    def _norm(self, v: Tensor) -> Tensor:
        eps = 1e-12 if self.eps is None else self.eps
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        return (v.flatten(2).square().sum(2) + eps).sqrt().flatten()

    def of_projection(self, layer: LatentNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """In units of the norms of the weights."""
        norm = self.norm(_linear_of(layer)).to(mean)
        return mean / norm, var / norm.square()

    def projection(self, layer: LatentNorm, x: Tensor) -> Tensor:
        r""":math:`\frac{v}{\lVert v\rVert} * x`, before any start statistics."""
        return self._apply_linear(layer, x, torch.ones_like(layer.state("start_std")), None)


def _linear_of(layer: LatentNorm) -> nn.Linear | _ConvNd:
    linear = layer.part("linear")
    if linear is None or not is_linear(linear):
        raise ConversionError(
            f"{layer.name}: the Weight normalizer owns a linear or (transposed) convolution layer "
            f"(LatentNorm(..., parts={{'linear': layer}})), got {type(linear).__name__}."
        )
    return linear  # type: ignore[return-value]
