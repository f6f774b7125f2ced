"""Normalizers that keep statistics of the start beside those they compute."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pyronorm.errors import StatisticsError
from pyronorm.normalizers.base import LatentNorm, Normalizer

__all__ = ["StartNormalizer"]


class StartNormalizer(Normalizer):
    r"""A normalizer of a projection with fixed start statistics, :math:`\hat x = (p - m_0)/s_0`.

    The projection :math:`p` follows the weights; :math:`(m_0, s_0)` are the buffers ``start_mean`` and
    ``start_std``, 0 and 1 unless a start sets them.
    """

    def buffers(self, num_channels: int) -> dict[str, Tensor]:
        """``start_mean`` and ``start_std``."""
        return {"start_mean": torch.zeros(num_channels), "start_std": torch.ones(num_channels)}

    @abstractmethod
    def projection(self, layer: LatentNorm, x: Tensor) -> Tensor:
        """What the layer makes of its input before start statistics, weight and bias."""

    def of_projection(self, layer: LatentNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the projection from those behind the linear layer, where it owns one."""
        return mean, var

    def start(self, layer: LatentNorm, mean: Tensor, std: Tensor) -> None:
        """Write the start statistics, those of the projection.

        Raises:
            StatisticsError: if a channel is constant or not finite.
        """
        good = (std > 0) & std.isfinite() & mean.isfinite()
        if not bool(good.all()):
            raise StatisticsError(
                f"{layer.name}: {int((~good).sum())} of {layer.num_channels} channels are constant "
                "or not finite on the given batch, so they give no start statistics. Pass a batch of "
                "real data with at least two different examples."
            )
        layer.state("start_mean").copy_(mean)
        layer.state("start_std").copy_(std)
