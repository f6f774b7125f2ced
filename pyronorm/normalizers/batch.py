"""Batch and population statistics: batch normalization in its two modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyronorm.checks import Count, NotNegative
from pyronorm.errors import ConversionError, ShapeError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.kernels import affine_each, float32_affine
from pyronorm.normalizers.origin import Origin
from pyronorm.stats.moments import layer_moments

__all__ = ["Batch", "Population"]


def _population_buffers(num_channels: Count) -> dict[str, Tensor]:
    # The names and initial values of torch.nn.BatchNorm, so that state dicts are exchangeable.
    return {
        "running_mean": torch.zeros(num_channels),
        "running_var": torch.ones(num_channels),
        "num_batches_tracked": torch.tensor(0, dtype=torch.long),
    }


def _normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: NotNegative,
) -> Tensor:
    # The kernel wants statistics and affine map of one dtype.
    weight, bias = float32_affine(x, weight, bias)
    dtype = torch.promote_types(x.dtype, torch.float32) if weight is None else weight.dtype
    return F.batch_norm(x, mean.to(dtype), var.to(dtype), weight, bias, False, 0.0, eps)


def _normalize_population(
    layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    mean, var = layer.state("running_mean"), layer.state("running_var")
    return _normalize(x, mean, var, weight, bias, layer.eps)


def _normalize_population_each(
    layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    mean, var = layer.state("running_mean"), layer.state("running_var")
    weight = weight * torch.rsqrt(var + layer.eps)
    return affine_each(x, weight, torch.addcmul(bias, weight, mean, value=-1))


@dataclass(frozen=True)
class Population(Normalizer):
    r"""Fixed population statistics, in training and evaluation alike.

    The reference statistics :math:`\mu` = ``running_mean`` and
    :math:`\sigma = \sqrt{\texttt{running\_var} + \epsilon}` are constants: what a trained batch
    normalization network does in evaluation mode. Use it to put a posterior on a pretrained network.

    Args:
        eps: added to the variance; None takes the converted layer's own.
    """

    eps: NotNegative | None = None
    keeps_population: ClassVar[bool] = True

    def buffers(self, num_channels: Count) -> dict[str, Tensor]:
        """``running_mean``, ``running_var`` and ``num_batches_tracked``."""
        return _population_buffers(num_channels)

    def adopt(self, layer: LatentNorm, origin: Origin) -> None:
        """Take over the population statistics; a frozen layer keeps the keys of its state dict."""
        if not origin.has_population:
            raise ConversionError(
                f"convert: layer {layer.name!r} ({type(origin.layer).__name__}) has no population "
                "statistics for the Population normalizer: train the network with batch "
                "normalization first."
            )
        super().adopt(layer, origin)
        if origin.num_batches is None:
            layer._buffers = {key: layer._buffers[key] for key in origin.layer._buffers}
            layer.register_load_state_dict_pre_hook(_drop_num_batches)  # type: ignore[no-untyped-call]

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize with the population statistics."""
        return _normalize_population(layer, x, weight, bias)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalize with the population statistics and an affine map per example."""
        return _normalize_population_each(layer, x, weight, bias)


def _drop_num_batches(module: nn.Module, state: Any, prefix: str, *args: Any) -> None:
    state.pop(f"{prefix}num_batches_tracked", None)  # of a BatchNorm's state dict


@dataclass(frozen=True)
class Batch(Normalizer):
    r"""Batch statistics in training mode, population statistics in evaluation mode.

    In training mode :math:`(\mu, \sigma^2)` are mean and biased variance of the batch per channel,
    and no running average is moved. The population statistics for evaluation mode come from
    :func:`pyronorm.estimate_population_statistics`, an explicit call over the data.

    Args:
        eps: added to the variance; None takes the converted layer's own.

    Departs from torch.nn.BatchNorm: running it never changes it; there is no ``momentum``.
    """

    eps: NotNegative | None = None
    uses_batch: ClassVar[bool] = True
    keeps_population: ClassVar[bool] = True

    def buffers(self, num_channels: Count) -> dict[str, Tensor]:
        """``running_mean``, ``running_var`` and ``num_batches_tracked``."""
        return _population_buffers(num_channels)

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize with the batch (training mode) or the population (evaluation mode)."""
        if not layer.training:
            return _normalize_population(layer, x, weight, bias)
        count = x.numel() // x.shape[1]
        if count < 2:
            raise ShapeError(
                f"{layer.name}: batch statistics need at least 2 values per channel, got {count} "
                f"(input of shape {tuple(x.shape)}). Use a larger batch, or evaluation "
                "mode."
            )
        if layer.recorder is not None:
            moments = layer_moments(x)
            layer.recorder(layer, moments)
            if not torch.is_grad_enabled():  # the recorded moments have no gradient
                return _normalize(x, moments.mean, moments.var, weight, bias, layer.eps)
        weight, bias = float32_affine(x, weight, bias)
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, layer.eps)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Like :meth:`normalize`, with an affine map per example."""
        if not layer.training:
            return _normalize_population_each(layer, x, weight, bias)
        return super().normalize_each(layer, x, weight, bias)
