"""What a normalizer may ask about the layer whose place it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pyronorm.conversion.kind import Kind
from pyronorm.conversion.surroundings import Surroundings

__all__ = ["LayerOrigin"]


@dataclass(frozen=True, eq=False)
class LayerOrigin:
    """The original layer, as :class:`pyronorm.normalizers.origin.Origin` describes it.

    Attributes:
        name: its name in the network.
        layer: the layer.
        kind: what it is.
        surroundings: the network around it.
    """

    name: str
    layer: nn.Module
    kind: Kind
    surroundings: Surroundings | None = None

    @property
    def eps(self) -> float:
        """What the original adds to the variance."""
        return self.kind.normalizer.eps or 0.0

    @property
    def has_population(self) -> bool:
        """Whether the original has population statistics that have seen data."""
        return self.kind.has_population

    @property
    def mean(self) -> Tensor | None:
        """Population mean."""
        return self.layer._buffers.get("running_mean")

    @property
    def var(self) -> Tensor | None:
        """Population variance."""
        return self.layer._buffers.get("running_var")

    @property
    def num_batches(self) -> Tensor | None:
        """How many batches they come from."""
        return self.layer._buffers.get("num_batches_tracked")

    def take_linear(self) -> tuple[str, nn.Module]:
        """Take the linear layer before it."""
        return self._known.take_linear(self.name)

    def moments_of_input(
        self, mean: Sequence[float], std: Sequence[float]
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Mean and variance of its input as a function of the weights."""
        return self._known.moments_of_input(self.name, mean, std)

    @property
    def _known(self) -> Surroundings:
        assert self.surroundings is not None
        return self.surroundings
