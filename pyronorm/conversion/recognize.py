"""Say what a layer of an unregistered class is, by what it holds and computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pyronorm.conversion.kind import Kind
from pyronorm.conversion.probe import verify
from pyronorm.errors import ConversionError
from pyronorm.normalizers.batch import Population

__all__ = ["recognize"]


def recognize(layer: nn.Module) -> Kind:
    """Find the kind that computes what a layer computes.

    Args:
        layer: of any class.

    Raises:
        ConversionError: if there is none, with how far the likeliest is off.
    """
    reason = "is not a registered class"
    for kind in _candidates(layer):
        try:
            verify(layer, kind)
        except ConversionError as error:
            reason = str(error)
        else:
            return kind
    raise ConversionError(
        f"{reason}. If it computes what a normalizer does, say so: "
        "pyronorm.conversion.register(layer_class, ...)"
    )


def _candidates(layer: Any) -> Iterator[Kind]:
    if set(layer._buffers) == {"weight", "bias", "running_mean", "running_var"}:
        eps = getattr(layer, "eps", 1e-5)
        yield Kind(
            Population(eps=float(eps)), layer.running_mean.numel(), has_population=True, ranks=(4,)
        )
