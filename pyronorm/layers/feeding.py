"""Find the linear or convolution layer that feeds each normalization layer, by running them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyronorm.errors import ConversionError
from pyronorm.layers.weight import is_linear

__all__ = ["find_feeding_layers"]


class _Uses(TorchFunctionMode):
    """Counts, for each watched tensor, how often a torch function takes it as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Reading a shape or a dimension is no use of the values.
        if any(isinstance(item, Tensor) for item in _flat((result,))):
            for item in _flat((*args, *(kwargs or {}).values())):
                if id(item) in self.counts:
                    self.counts[id(item)] += 1
        return result


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


@torch.no_grad()
def find_feeding_layers(
    network: nn.Module, targets: Iterable[str], example_input: Tensor
) -> dict[str, str]:
    """Name the layer whose output each normalization layer takes, and nobody else.

    The network runs once, in evaluation mode, on a copy of itself.

    Args:
        network: a network with ordinary normalization layers.
        targets: names of the normalization layers.
        example_input: a batch as the network takes it.

    Returns:
        For each target the name of its Linear, Conv1d, Conv2d or Conv3d.

    Raises:
        ConversionError: naming the layer that cannot be followed, and why.
    """
    network = copy.deepcopy(network).eval()
    uses = _Uses()
    produced: dict[int, str] = {}  # id of an output -> name of the layer it came from
    kept: list[Tensor] = []  # keeps outputs alive, so that ids stay unique
    consumed: dict[str, int] = {}  # normalization layer -> id of its input
    calls: dict[str, int] = {}

    def produce(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            produced[id(output)] = name
            kept.append(output)
            uses.counts[id(output)] = 0

        return hook

    def consume(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            consumed[name] = id(args[0])

        return hook

    for name, module in network.named_modules():
        if is_linear(module):
            module.register_forward_hook(produce(name))
    for target in targets:
        network.get_submodule(target).register_forward_pre_hook(consume(target))
    with uses:
        network(example_input)

    feeding: dict[str, str] = {}
    for target in targets:
        source = produced.get(consumed.get(target, 0))
        if calls.get(target, 0) != 1:
            problem = f"is called {calls.get(target, 0)} times on the example input, not once"
        elif source is None:
            problem = "is not fed directly by a Linear or Conv1d/2d/3d layer"
        elif calls[source] != 1:
            problem = f"is fed by {source!r}, which is called {calls[source]} times, not once"
        elif uses.counts[consumed[target]] != 1:
            problem = f"is fed by {source!r}, whose output is used elsewhere too"
        elif _has_hooks(network.get_submodule(source)):
            problem = f"is fed by {source!r}, which has hooks that would no longer run"
        else:
            feeding[target] = source
            continue
        raise ConversionError(
            f"convert: layer {target!r} {problem}, so a weight normalizer cannot own the layer "
            "before it. Leave it out with only=[...], or choose another normalizer for it."
        )
    return feeding


def _has_hooks(module: nn.Module) -> bool:
    # One forward hook is our own.
    return len(module._forward_hooks) > 1 or bool(module._forward_pre_hooks)
