"""What a prior is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

__all__ = ["Prior"]


class Prior(ABC):
    """A distribution of ``shift`` and ``scale``, the same and independent for every channel."""

    @abstractmethod
    def distributions(
        self, num_channels: int, like: Tensor
    ) -> tuple[TorchDistributionMixin, TorchDistributionMixin]:
        """The distributions of ``shift`` and of ``scale``.

        Args:
            num_channels: length of both.
            like: gives device and dtype.

        Returns:
            Two independent distributions with event shape ``(num_channels,)``.
        """
