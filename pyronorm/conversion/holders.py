"""Modules that compute with the tensors of a normalization layer that they hold, around the layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from pyronorm.errors import ConversionError
from pyronorm.normalizers.words import plain_name

__all__ = ["is_quantized", "refuse_holders"]

_FUSED = ("torch.ao.nn.intrinsic.qat", "torch.ao.nn.qat")
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer computes with whole numbers, by its class."""
    return type(layer).__module__.startswith(_QUANTIZED)


def refuse_holders(network: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers whose holder would go around their latents.

    Args:
        network: the network.
        names: of the layers that are to be converted.

    Raises:
        ConversionError: naming the first layer, and what holds it.
    """
    for name in names:
        for place, holder in _holders(network, name):
            reason = _reason(holder)
            if reason:
                raise ConversionError(
                    f"convert: layer {plain_name(name)!r} is held by {plain_name(place)!r} "
                    f"({type(holder).__name__}), which {reason}. To leave it as it is, "
                    f"skip=[{plain_name(name)!r}]."
                )


def _holders(network: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    parts = name.split(".")
    for count in range(len(parts)):
        place = ".".join(parts[:count])
        yield place, network.get_submodule(place)


def _reason(holder: nn.Module) -> str:
    if type(holder).__module__.startswith(_FUSED):
        return (
            "is fused for training with quantization and computes with the layer's own tensors. "
            "Convert the network before it is prepared for quantization"
        )
    if getattr(holder, "allow_single_element", False) is True:  # torch_geometric's BatchNorm
        return (
            "has allow_single_element=True: for a single node it computes with the layer's own "
            "statistics. Build it without"
        )
    return ""
