"""What a normalizer may ask about the layer whose place it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Origin"]


@runtime_checkable
class Origin(Protocol):
    """The layer that is replaced, as far as a normalizer needs to know it."""

    @property
    def layer(self) -> nn.Module:
        """The original layer (in the copy that is converted)."""

    @property
    def eps(self) -> float:
        """What the original adds to the variance."""

    @property
    def mean(self) -> Tensor | None:
        """Population mean per channel, if the original keeps one."""

    @property
    def var(self) -> Tensor | None:
        """Population variance per channel, likewise."""

    @property
    def num_batches(self) -> Tensor | None:
        """How many batches they come from, if the original counts."""

    @property
    def has_population(self) -> bool:
        """Whether they have seen data."""

    def take_linear(self) -> tuple[str, nn.Module]:
        """Take the linear layer that feeds the original alone out of the network; its name, and it."""

    def moments_of_input(
        self, mean: Sequence[float], std: Sequence[float]
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Mean and variance of the layer's input as a function of the weights before it.

        Args:
            mean: of the network's input, one number or one per channel.
            std: standard deviation, likewise.
        """
