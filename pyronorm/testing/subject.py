"""What a suite is about: a normalizer, and networks that have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from pyronorm.conversion import convert
from pyronorm.infer import estimate_population_statistics
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import Normalizer
from pyronorm.testing.networks import (
    CHANNELS,
    batch_norm,
    data,
    layout,
    modes,
    original,
    settle,
)

__all__ = ["Subject"]


class Subject(ABC):
    """A normalizer, and how to build networks that have it."""

    spatial_dims: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)
    """Numbers of spatial axes that the normalizer takes."""

    needs_positions: ClassVar[bool] = False
    """Whether its statistics need several positions per channel; then it has to refuse a single one
    by the layer's name."""

    independent_channels: ClassVar[bool] = True
    """Whether a channel's statistics are of this channel alone."""

    @abstractmethod
    def make(self, num_channels: int) -> Normalizer:
        """Return the normalizer, for layers of that many channels (6)."""

    def torch_layer(self, num_channels: int, dims: int) -> nn.Module | None:
        """Return torch's own layer, or any module that computes the same without latents.

        It is given the weight, bias and statistics of the normalized layer, by the keys of its
        ``state_dict``, and has to agree with it in training and in evaluation mode.

        Args:
            num_channels: number of channels, on axis 1.
            dims: number of spatial axes, one of :attr:`spatial_dims`.

        Returns:
            None where there is none.
        """
        return None

    def original_layer(self, num_channels: int, dims: int, eps: float, affine: bool) -> nn.Module:
        """Return the layer that the converted networks have; torch's batch normalization.

        To be overridden for a layer class of your own, registered with
        :func:`pyronorm.conversion.register`. Then :meth:`make` returns the normalizer it becomes, and
        :meth:`torch_layer` may return such a layer too.

        Args:
            num_channels: number of channels.
            dims: number of spatial axes, one of :attr:`spatial_dims`.
            eps: added to the variance.
            affine: whether it learns weight and bias.
        """
        return batch_norm(num_channels, dims, eps, affine)

    def after(self, y: Tensor) -> Tensor:
        """What the original layer does to its normalized output: nothing."""
        return y

    def _original(
        self, dims: int, *, deep: bool = False, affine: bool = True, eps: float = 1e-5
    ) -> nn.Sequential:
        return original(dims, deep=deep, affine=affine, eps=eps, layer=self.original_layer)

    def convert(self, network: nn.Module, example_input: Tensor) -> nn.Module:
        """Convert a network; to be overridden if the normalizer asks for more than this."""
        return convert(network, self.make(CHANNELS), example_input=example_input)

    @property
    def _uses_batch(self) -> bool:
        return self.make(CHANNELS).uses_batch

    @property
    def _one_pair_per_batch(self) -> bool:
        kind = self.make(CHANNELS)
        return kind.uses_batch and kind.shared_by_batch and self.independent_channels

    def _network(self, source: nn.Module, x: Tensor) -> LatentNetwork:
        """Convert; the population statistics are those of ``x``."""
        settle(source, x)
        network = LatentNetwork(self.convert(source, x))
        estimate_population_statistics(network, [x])
        return network

    def _cases(
        self, *, deep: bool = False, affine: bool = True, eps: float = 1e-5
    ) -> Iterator[tuple[LatentNetwork, Tensor, str]]:
        """Networks with their data in every layout and mode, and what to call that."""
        for dims in self.spatial_dims:
            source = self._original(dims, deep=deep, affine=affine, eps=eps)
            network = self._network(source, data(dims))
            x = data(dims) * 1.5 + 0.5  # whose statistics are not those of the population
            for mode in modes(network):
                yield network, x, f"{layout(dims)}, {mode}"
