"""What a layer is called with: inputs of the shapes that its original takes, or a proxy of torch.fx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx import Proxy

from pyronorm.errors import ShapeError

if TYPE_CHECKING:
    from pyronorm.normalizers.base import LatentNorm

__all__ = ["check_examples", "check_input", "graph_node", "is_single_example"]


def is_single_example(layer: LatentNorm, x: Any) -> bool:
    """Whether an input is an example without a batch axis, which the layer's original takes.

    Raises:
        ShapeError: if it is no tensor of real numbers.
    """
    if not isinstance(x, Tensor) or x.is_complex():
        came = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{layer.name}: expected a tensor of real numbers, got {came}.")
    return layer.unbatched and (
        x.ndim == 1 if layer.ranks is None else x.ndim + 1 == layer.ranks[0]
    )


def check_input(layer: LatentNorm, x: Tensor) -> None:
    """Refuse an input that the layer's original would refuse.

    Raises:
        ShapeError: if it has other numbers of axes or channels.
    """
    if layer.ranks is not None and x.ndim not in layer.ranks:
        ranks = " or ".join(f"{n}D" for n in layer.ranks)
        raise ShapeError(f"{layer.name}: expected {ranks} input (got {x.ndim}D input).")
    axis = layer.normalizer.channel_axis(layer)
    if x.ndim < 2 or (axis is not None and x.shape[axis] != layer.num_channels):
        shape = "(batch, *spatial, channel)" if layer.channel_last else "(batch, channel, ...)"
        raise ShapeError(
            f"{layer.name}: expected an input of shape {shape} with {layer.num_channels} "
            f"channels, got {tuple(x.shape)}."
        )


def check_examples(layer: LatentNorm, x: Tensor, shift: Tensor) -> None:
    """Refuse latents per example for an input that does not have as many on axis 0.

    Raises:
        ShapeError: saying how many there are.
    """
    if shift.shape[0] not in (1, x.shape[0]):
        raise ShapeError(
            f"{layer.name}: latents for {shift.shape[0]} examples, but the input has "
            f"{x.shape[0]} along axis 0 (shape {tuple(x.shape)}). Per-example latents need the "
            "examples on axis 0 of every normalized layer; otherwise give one draw for all."
        )


def graph_node(layer: LatentNorm, x: Proxy, args: Any, kwargs: Any) -> Proxy:
    """Write the layer's call into a graph of torch.fx as one node, as torch's own layers are.

    What happens inside of it depends on the shape of its input and on the latents of a call.
    """
    tracer: Any = x.tracer
    path = tracer.path_of_module(layer)
    proxy: Proxy = tracer.create_proxy("call_module", path, (x, *args), kwargs)
    return proxy
