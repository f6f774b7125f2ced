"""What was asked of convert, kept with the network so that it can be done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.inputs import map_tensors
from pyronorm.normalizers import Normalizer

__all__ = ["Conversion", "Form", "conversions_of", "record_conversion"]

_PLACE = "pyronorm_conversions"


@dataclass(frozen=True)
class Form:
    """What is kept of a tensor of the example input.

    Attributes:
        shape: its shape.
        dtype: the name of its data type.
    """

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """The form of a tensor."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def zeros(self, like: Tensor | None) -> Tensor:
        """A tensor of that form; floating point numbers as ``like`` has them."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if like is not None and dtype.is_floating_point and like.is_floating_point():
            dtype = like.dtype
        return torch.zeros(self.shape, dtype=dtype)


@dataclass(frozen=True)
class Conversion:
    """The arguments of one call of :func:`pyronorm.convert`.

    Attributes:
        normalizer: as given; None for each layer's own kind.
        options: the other arguments, but for the example; ready for JSON.
        example: the example input, if there was one, a :class:`Form` in place of each tensor.
    """

    normalizer: Normalizer | None
    options: Mapping[str, Any] = field(default_factory=dict)
    example: Any = None

    @classmethod
    def of(
        cls, normalizer: Normalizer | None, example: Any, **names: Iterable[str] | None
    ) -> Conversion:
        """The record of a call.

        Args:
            normalizer: as given.
            example: the example input; its values do not matter.
            names: options that are names of layers, as given.
        """
        lists = {k: [v] if isinstance(v, str) else v and list(v) for k, v in names.items()}
        return cls(normalizer, lists, map_tensors(Form.of, example))

    def example_input(self, like: Tensor | None = None) -> Any:
        """An example of that form, zeros.

        Args:
            like: gives the precision of floating point numbers; None for that of the example.
        """
        return _zeros(self.example, like)


def _zeros(form: Any, like: Tensor | None) -> Any:
    if isinstance(form, Form):
        return form.zeros(like)
    if isinstance(form, dict):
        return {key: _zeros(part, like) for key, part in form.items()}
    if isinstance(form, (tuple, list)):
        return type(form)(_zeros(part, like) for part in form)
    return form


def record_conversion(network: nn.Module, conversion: Conversion) -> None:
    """Note a conversion with the converted network, after those it has been through before."""
    network.__dict__[_PLACE] = (*conversions_of(network), conversion)


def conversions_of(network: nn.Module) -> tuple[Conversion, ...]:
    """The conversions that a network has been through, in their order; none if it was built so."""
    found: tuple[Conversion, ...] = network.__dict__.get(_PLACE, ())
    return found
