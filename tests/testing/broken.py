"""A batch normalizer in plain torch that is right, and variants of it that are wrong in one way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyronorm.errors import ShapeError
from pyronorm.normalizers import Batch, LatentNorm, Normalizer, affine_each
from pyronorm.stats import Moments, channel_moments


@dataclass(frozen=True)
class Plain(Normalizer):
    eps: float | None = None
    uses_batch: ClassVar[bool] = True
    keeps_population: ClassVar[bool] = True

    def buffers(self, num_channels):
        return Batch().buffers(num_channels)

    def statistics(self, layer, x):
        if not layer.training:
            return layer.state("running_mean"), layer.state("running_var")
        self.refuse(layer, x)
        if layer.recorder is not None:
            layer.recorder(layer, self.moments(x))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = self.axes(x)
        mean, var = wide.mean(axes, keepdim=True), wide.var(axes, correction=0, keepdim=True)
        return (v.expand(1, x.shape[1], *v.shape[2:]).flatten() for v in (mean, var))

    def refuse(self, layer, x):
        if x.numel() == x.shape[1]:
            raise ShapeError(f"{layer.name}: one value per channel")

    def moments(self, x):
        return channel_moments(x)

    def axes(self, x):
        return [axis for axis in range(x.ndim) if axis != 1]

    def normalize(self, layer, x, weight, bias):
        mean, var = self.statistics(layer, x)
        gain = torch.rsqrt(var + layer.eps)
        gain = gain if weight is None else gain * weight
        offset = -gain * mean if bias is None else bias - gain * mean
        return affine_each(x, gain[None], offset[None])


class AveragesAcrossChannels(Plain):
    """The axes of a torch-uncertainty layer: right for images, wrong for (batch, channel, length)."""

    def axes(self, x):
        return [0, -2, -1] if x.ndim == 3 else super().axes(x)


class Detached(Plain):
    def statistics(self, layer, x):
        mean, var = super().statistics(layer, x)
        return mean.detach(), var


class WritesBuffer(Plain):
    def statistics(self, layer, x):
        mean, var = super().statistics(layer, x)
        if layer.training:
            layer.state("running_mean").lerp_(mean.detach().to(layer.running_mean), 0.1)
        return mean, var


class LeavesAttribute(Plain):
    def statistics(self, layer, x):
        layer.last_shape = x.shape
        return super().statistics(layer, x)


class IgnoresLatents(Plain):
    def normalize(self, layer, x, weight, bias):
        return super().normalize(layer, x, layer.weight, layer.bias)


class ScalesBias(Plain):
    def normalize(self, layer, x, weight, bias):
        if weight is not None and bias is not None:
            bias = weight * bias
        return super().normalize(layer, x, weight, bias)


class OneDrawForAll(Plain):
    def normalize_each(self, layer, x, weight, bias):
        return super().normalize(layer, x, weight[0], bias[0])


class NotNeutral(Plain):
    def normalize(self, layer, x, weight, bias):
        y = super().normalize(layer, x, weight, bias)
        return y if layer.latents is None else 1.01 * y


class HalfStatistics(Plain):
    def statistics(self, layer, x):
        return (v.to(x.dtype) for v in super().statistics(layer, x))


class OnlyFloat32(Plain):
    def normalize(self, layer, x, weight, bias):
        return super().normalize(layer, x.float(), weight, bias)


class OnCpu(Plain):
    def statistics(self, layer, x):
        return (v + torch.zeros(6) for v in super().statistics(layer, x))


class Unbiased(Plain):
    def statistics(self, layer, x):
        mean, var = super().statistics(layer, x)
        n = x.numel() // x.shape[1]
        return mean, var * n / (n - 1) if layer.training else var


class ReportsUnbiased(Plain):
    def moments(self, x):
        m = channel_moments(x)
        return Moments(m.count, m.mean, m.var * m.count / (m.count - 1))


class ReportsFinite(Plain):
    def moments(self, x):
        found = channel_moments(x)
        mean, var = (value.nan_to_num(0, 0, 0) for value in (found.mean, found.var))
        return replace(found, mean=mean, var=var)


class ReportsNothing(Plain):
    def statistics(self, layer, x):
        recorder, layer.recorder = layer.recorder, None
        try:
            return super().statistics(layer, x)
        finally:
            layer.recorder = recorder


class Undeclared(Plain):
    uses_batch: ClassVar[bool] = False


class UndeclaredPadded(Plain):
    """Statistics over the batch and not declared, with no complaint about a single example."""

    uses_batch: ClassVar[bool] = False

    def statistics(self, layer, x):
        x = torch.cat([x, torch.zeros_like(x)])
        return super().statistics(layer, x)


class TwoFunctions(Plain):
    """Population statistics in evaluation mode, none at all in training mode."""

    uses_batch: ClassVar[bool] = False

    def statistics(self, layer, x):
        mean, var = layer.state("running_mean"), layer.state("running_var")
        return (mean, var) if not layer.training else (mean * 0, var)


class HidesNonFinite(Plain):
    def normalize(self, layer, x, weight, bias):
        return super().normalize(layer, x.nan_to_num(0, 0, 0), weight, bias)


class AcceptsOneValue(Plain):
    def refuse(self, layer, x):
        pass


class RefusesNamelessly(Plain):
    def refuse(self, layer, x):
        if x.numel() == x.shape[1]:
            raise ShapeError("one value per channel")


class Branches(Plain):
    def normalize(self, layer, x, weight, bias):
        y = super().normalize(layer, x, weight, bias)
        return y if bool((y > -1e9).all()) else -y


class Flattens(Plain):
    def normalize(self, layer, x, weight, bias):
        return super().normalize(layer, x.view(x.shape[0], -1).view(x.shape), weight, bias)


class TakesChannelLast(Plain):
    handles_channel_last: ClassVar[bool] = True  # and does not


@dataclass(frozen=True)
class KeepsTensor(Plain):
    mean: Tensor = field(default_factory=lambda: torch.zeros(6))


@dataclass
class Mutable(Normalizer):
    eps: float | None = None

    def normalize(self, layer, x, weight, bias):
        return x


_OFFSETS: WeakKeyDictionary[LatentNorm, Tensor] = WeakKeyDictionary()


class KeptElsewhere(Plain):
    def statistics(self, layer, x):
        mean, var = super().statistics(layer, x)
        return mean + _OFFSETS.setdefault(layer, torch.randn(6).to(mean)), var
