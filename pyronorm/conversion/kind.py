"""What an original layer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from pyronorm.checks import Count, Finite, check_fields
from pyronorm.normalizers.base import Normalizer

__all__ = ["Kind", "Part"]

Part: TypeAlias = str | Callable[[Tensor], Tensor]
"""Something applied to a layer's output: the name of a child module, or a function."""


@dataclass(frozen=True)
class Kind:
    """What a normalization layer is, in the terms of this library.

    The layer's tensors (parameters, buffers or None) keep their names: weight and bias, and
    ``running_mean``, ``running_var`` and ``num_batches_tracked`` where there are population statistics.

    Attributes:
        normalizer: the one that does the same, with the layer's ``eps``.
        num_channels: how many channels have statistics.
        channel_last: whether they are on the last axis.
        has_population: whether the layer holds population statistics that have seen data.
        then: what the layer applies to its normalized output, in order, such as a dropout and an
            activation: names of child modules, or functions of one tensor.
        ranks: the numbers of axes that a batch may have; None for any.
        first_ranks: the numbers of axes with which channels are on axis 1 although ``channel_last``.
        unbatched: whether the layer takes an input with one axis less as a single example.
        weight: the name of the weight, which multiplies the normalized value.
        bias: the name of the bias, which is added after that.
        weight_plus: added to the weight: 1 where the layer learns its difference from 1.
        keeps: further parameters, buffers and child modules that its normalizer works with, by name.
        fixed: why no other normalizer can take the layer's place; empty if any can.
    """

    normalizer: Normalizer
    num_channels: Count
    channel_last: bool = False
    has_population: bool = False
    then: tuple[Part, ...] = ()
    ranks: tuple[Count, ...] | None = None
    first_ranks: tuple[Count, ...] = ()
    unbatched: bool = False
    weight: str = "weight"
    bias: str = "bias"
    weight_plus: Finite = 0.0
    keeps: tuple[str, ...] = ()
    fixed: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
