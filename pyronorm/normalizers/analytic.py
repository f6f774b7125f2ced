"""Statistics propagated through the network: analytic normalization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import NotNegative, checked
from pyronorm.errors import ConversionError, OptionError, StatisticsError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.kernels import affine, affine_each
from pyronorm.normalizers.origin import Origin
from pyronorm.normalizers.start import StartNormalizer
from pyronorm.stats.moments import layer_moments

__all__ = ["Analytic"]


@dataclass(frozen=True)
class Analytic(StartNormalizer):
    r"""Analytic normalization: the statistics that the weights give to data of known moments.

    Mean and variance per channel are propagated through all operations between the normalizations
    before a layer, or the network's input, and the layer (:mod:`pyronorm.stats.propagation`). With
    :math:`(\mu, \sigma^2)` at the layer's input,

    .. math::
        \hat x = \left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} - m_0\right) / s_0,

    and a normalized output has mean ``bias`` and variance ``weight ** 2``. The statistics are
    computed anew from the weights at every call, never from the batch, and are differentiable in
    all of them. They treat channels, positions and summands as independent and values as Gaussian,
    and they do not see padding: an approximation that drifts with depth between normalizations.

    :math:`(m_0, s_0)` are the buffers ``start_mean`` and ``start_std``: 0 and 1, unless the layer is
    converted from population statistics (then the network starts as the same function) or
    :func:`pyronorm.data_dependent_start` sets them. They stay fixed.

    Such layers come from :func:`pyronorm.convert` with an ``example_input``, which traces the
    network and names the operation it cannot follow.

    Args:
        input_mean: mean of the network's input, one number or one per channel. The default, with
            ``input_std``, is for standardized data.
        input_std: standard deviation of the network's input, likewise.
        eps: added to the variance; None takes the converted layer's own.

    Raises:
        OptionError: if the input statistics are not finite, or a deviation is not positive.

    Source: Shekhovtsov & Flach, "Normalization of Neural Networks using Analytic Variance
    Propagation" (2018); with stochastic scale and shift their "Stochastic Normalizations as Bayesian
    Learning" (ACCV 2018).
    """

    input_mean: float | tuple[float, ...] = 0.0
    input_std: float | tuple[float, ...] = 1.0
    eps: NotNegative | None = None
    needs_example: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("input_mean", "input_std"):
            value = getattr(self, name)
            if not all(math.isfinite(x) for x in _tuple(value)) or not _tuple(value):
                raise OptionError(f"Analytic: {name} must be finite, got {value}.")
        if min(_tuple(self.input_std)) <= 0:
            raise OptionError(f"Analytic: input_std must be positive, got {self.input_std}.")

    @classmethod
    @checked
    def from_data(
        cls, x: Float[Tensor, "example channel *spatial"], eps: NotNegative | None = None
    ) -> Analytic:
        """The normalizer for data like these: their mean and standard deviation per channel.

        Args:
            x: inputs of the network, as many as there are.
            eps: see above.

        Raises:
            StatisticsError: if they are not finite, or no channel varies.
        """
        moments = layer_moments(x)
        mean, std = moments.mean, moments.var.sqrt()
        if not bool(mean.isfinite().all() & std.isfinite().all()) or float(std.max()) == 0:
            raise StatisticsError("Analytic.from_data: the data are constant or not finite.")
        floor = 1e-3 * float(std.max())  # a constant channel (a border pixel of an MLP's input)
        return cls(tuple(mean.tolist()), tuple(std.clamp(min=floor).tolist()), eps)

    @property
    def input_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of the input, each of length 1 or one per channel."""
        return _tuple(self.input_mean), _tuple(self.input_std)

    def fitted(self, x: Tensor) -> Analytic:
        """With the moments of these inputs."""
        return replace(type(self).from_data(x), eps=self.eps)

    @torch.no_grad()
    def adopt(self, layer: LatentNorm, origin: Origin) -> None:
        """Follow the network up to the layer, and start where its population statistics were."""
        layer.surroundings = origin.moments_of_input(*self.input_statistics)
        if origin.has_population and origin.mean is not None and origin.var is not None:
            mean, std = self.moments(layer, origin.mean)
            population_std = (origin.var + (origin.eps)).sqrt()
            layer.state("start_mean").copy_((origin.mean - mean) / std)
            layer.state("start_std").copy_(population_std / std)

    def shared(
        self, layers: Sequence[LatentNorm], like: Tensor
    ) -> Sequence[tuple[Tensor, Tensor]] | None:
        """The propagated moments of all layers, what they have in common computed once."""
        known = [layer.surroundings for layer in layers]
        if any(propagation is None for propagation in known):
            return None  # made by hand; such a layer says so when it runs
        moments: list[tuple[Tensor, Tensor]] = type(known[0]).together(known, like)
        return moments

    def describe(self, layer: LatentNorm) -> str:
        """The weights before it, and where the propagation of moments begins."""
        return "weights before it, moments propagated"

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize with the propagated statistics, in one kernel with the affine map."""
        mean, std = self.reference(layer, x)
        gain = 1 / std if weight is None else weight / std
        offset = -gain * mean if bias is None else torch.addcmul(bias, gain, mean, value=-1)
        return affine(x, gain, offset)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize with an affine map per example, in one pass."""
        mean, std = self.reference(layer, x)
        gain = weight / std
        return affine_each(x, gain, bias - gain * mean)

    def reference(self, layer: LatentNorm, like: Tensor) -> tuple[Tensor, Tensor]:
        r"""The mean and standard deviation it normalizes with, start statistics included."""
        mean, std = self.moments(layer, like)
        start_mean, start_std = layer.state("start_mean"), layer.state("start_std")
        return torch.addcmul(mean, std, start_mean.to(std.dtype)), std * start_std

    def moments(self, layer: LatentNorm, like: Tensor) -> tuple[Tensor, Tensor]:
        r"""Propagated mean and :math:`\sqrt{\sigma^2 + \epsilon}`, each of shape ``(channel,)``.

        Args:
            layer: the layer, whose input they are of.
            like: gives device and dtype (float32 at least).
        """
        if layer.surroundings is None:
            raise ConversionError(
                f"{layer.name}: an Analytic normalizer has to know the network before it. Make it with "
                "pyronorm.convert(network, Analytic(...), example_input=x)."
            )
        like = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
        mean, var = layer.shared or layer.surroundings(like)
        return mean.to(like), (var.to(like) + layer.eps).sqrt()

    def projection(self, layer: LatentNorm, x: Tensor) -> Tensor:
        r""":math:`(x - \mu)/\sqrt{\sigma^2+\epsilon}`, before any start statistics."""
        mean, std = self.moments(layer, x)
        return affine(x, 1 / std, -mean / std)


def _tuple(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
