"""Batch statistics over the batches of all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyronorm.checks import NotNegative
from pyronorm.errors import ShapeError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.batch import Batch
from pyronorm.normalizers.kernels import affine
from pyronorm.normalizers.words import population_in_words
from pyronorm.processes import gathered, num_processes
from pyronorm.stats import Moments

__all__ = ["SyncBatch"]

_BATCH = Batch()  # holds no state: eps, buffers and mode are the layer's


@dataclass(frozen=True)
class SyncBatch(Normalizer):
    r"""Statistics of the batches of all processes in training mode, of the population in evaluation.

    In training mode :math:`(\mu, \sigma^2)` are mean and biased variance of the joined batch of all
    processes of ``torch.distributed``, each of which has to run the layer at the same time. With
    :math:`n_r` values, mean :math:`m_r` and variance :math:`v_r` in process :math:`r`, and
    :math:`n = \sum_r n_r`,

    .. math::
        \mu = \sum_r \frac{n_r}{n} m_r, \qquad
        \sigma^2 = \sum_r \frac{n_r}{n} \left(v_r + (m_r - \mu)^2\right)

    Values and gradients are those of :class:`Batch` in one process with the joined batch, and in a
    single process it is :class:`Batch`. In :func:`pyronorm.fit` all processes share one draw of the
    latents.

    Args:
        eps: added to the variance; None takes the converted layer's own.

    Source: torch.nn.SyncBatchNorm. Departs from it: running it never changes it, and it runs on a CPU.
    """

    eps: NotNegative | None = None
    uses_batch: ClassVar[bool] = True
    keeps_population: ClassVar[bool] = True
    spans_processes: ClassVar[bool] = True

    def describe(self, layer: LatentNorm) -> str:
        """The batch of all processes, or the population."""
        return f"batch of all processes in training; {population_in_words(layer)}"

    def buffers(self, num_channels: int) -> dict[str, Tensor]:
        """``running_mean``, ``running_var`` and ``num_batches_tracked``."""
        return _BATCH.buffers(num_channels)

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize with the joined batch (training mode) or the population (evaluation mode)."""
        if layer.training and num_processes() > 1:
            return _normalize_together(layer, x, weight, bias)
        return _BATCH.normalize(layer, x, weight, bias)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Like :meth:`normalize`, with an affine map per example."""
        if layer.training and num_processes() > 1:
            return super().normalize_each(layer, x, weight, bias)
        return _BATCH.normalize_each(layer, x, weight, bias)


def _normalize_together(
    layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    if not x.numel():
        raise ShapeError(
            f"{layer.name}: every process needs at least one value per channel for batch statistics, "
            f"got an input of shape {tuple(x.shape)}."
        )
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = wide.new_full((1,), x.numel() // x.shape[1])
    dims = [axis for axis in range(x.ndim) if axis != 1]
    var, mean = torch.var_mean(wide, dims, correction=0)
    rows = gathered(torch.cat([count, mean, var]))
    counts, means, variances = rows.split([1, x.shape[1], x.shape[1]], dim=1)
    share = counts / counts.sum()
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0)
    if layer.recorder is not None:
        total = int(counts.sum())
        layer.recorder(layer, Moments(total, mean.detach().double(), var.detach().double()))
    gain = torch.rsqrt(var + layer.eps)
    gain = gain if weight is None else gain * weight
    offset = -mean * gain if bias is None else bias - mean * gain
    return affine(x, gain.to(wide.dtype), offset.to(wide.dtype))
