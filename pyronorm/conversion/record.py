"""What was asked of convert, kept with the network so that it can be done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.normalizers import Normalizer

__all__ = ["Conversion", "conversions_of", "record_conversion"]

_PLACE = "pyronorm_conversions"


@dataclass(frozen=True)
class Conversion:
    """The arguments of one call of :func:`pyronorm.convert`.

    Attributes:
        normalizer: as given; None for each layer's own kind.
        options: the other arguments, but for the example; ready for JSON.
        example: shape and data type of the example input, if there was one.
    """

    normalizer: Normalizer | None
    options: Mapping[str, Any] = field(default_factory=dict)
    example: tuple[tuple[int, ...], str] | None = None

    @classmethod
    def of(
        cls, normalizer: Normalizer | None, example: Tensor | None, **names: Iterable[str] | None
    ) -> Conversion:
        """The record of a call.

        Args:
            normalizer: as given.
            example: the example input; its values do not matter.
            names: options that are names of layers, as given.
        """
        lists = {k: [v] if isinstance(v, str) else v and list(v) for k, v in names.items()}
        form = None if example is None else (tuple(example.shape), str(example.dtype))
        return cls(normalizer, lists, form)

    def example_input(self) -> Tensor | None:
        """An example of that form, zeros."""
        if self.example is None:
            return None
        shape, dtype = self.example
        return torch.zeros(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))


def record_conversion(network: nn.Module, conversion: Conversion) -> None:
    """Note a conversion with the converted network, after those it has been through before."""
    network.__dict__[_PLACE] = (*conversions_of(network), conversion)


def conversions_of(network: nn.Module) -> tuple[Conversion, ...]:
    """The conversions that a network has been through, in their order; none if it was built so."""
    found: tuple[Conversion, ...] = network.__dict__.get(_PLACE, ())
    return found
