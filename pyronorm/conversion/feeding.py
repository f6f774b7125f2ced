"""Find the linear or convolution layer that feeds each normalization layer, by running them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from pyronorm.errors import ConversionError
from pyronorm.normalizers.weight import is_linear
from pyronorm.propagation.tracing import leaves, trace

__all__ = ["find_feeding_layers"]


def find_feeding_layers(
    network: nn.Module, targets: Iterable[str], example_input: Tensor
) -> dict[str, str]:
    """Name the layer whose output each normalization layer takes, and nobody else.

    Args:
        network: a network with ordinary normalization layers.
        targets: names of the normalization layers.
        example_input: a batch as the network takes it.

    Returns:
        For each target the name of its linear or (transposed) convolution layer.

    Raises:
        ConversionError: naming the layer that cannot be followed, and why.
    """
    targets = list(targets)
    calls = trace(network, example_input, whole=targets)
    feeding: dict[str, str] = {}
    for target in targets:
        own = calls.of_module(target)
        source = calls.producer(own[0].inputs[0]) if len(own) == 1 and own[0].inputs else None
        name = None if source is None else source.module
        if len(own) != 1:
            problem = f"is called {len(own)} times on the example input, not once"
        elif source is None or name is None or not is_linear(network.get_submodule(name)):
            problem = "is not fed directly by a linear or convolution layer"
        elif len(calls.of_module(name)) != 1:
            problem = (
                f"is fed by {name!r}, which is called {len(calls.of_module(name))} times, not once"
            )
        elif calls.uses(source.outputs[0]) != 1:
            problem = f"is fed by {name!r}, whose output is used elsewhere too"
        elif len(list(leaves((source.args, source.kwargs)))) != 1:
            problem = f"is fed by {name!r}, which is called with more than its input"
        elif _has_hooks(network.get_submodule(name)):
            problem = f"is fed by {name!r}, which has hooks that would no longer run"
        else:
            feeding[target] = name
            continue
        raise ConversionError(
            f"convert: layer {target!r} {problem}, so a weight normalizer cannot own the layer "
            "before it. Leave it out with only=[...], or choose another normalizer for it."
        )
    return feeding


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
