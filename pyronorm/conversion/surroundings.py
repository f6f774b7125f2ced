"""What stands before each normalization layer, found by running the network on an example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers.linear import is_linear
from pyronorm.propagation.propagate import build_propagation
from pyronorm.propagation.tracing import Call, Trace, leaves, trace

__all__ = ["Surroundings", "replace"]


class Surroundings:
    """The network around its normalization layers, followed on one example when first asked.

    Args:
        original: the network before the conversion.
        new: the copy that is converted.
        targets: names of the layers that are converted.
        example_input: a batch as the network takes it.
    """

    def __init__(
        self,
        original: nn.Module,
        new: nn.Module,
        targets: Collection[str],
        example_input: Any = None,
    ) -> None:
        self._original = original
        # A module that is registered at several places is traced under the first of its names.
        self._first: dict[int, str] = {
            id(module): name for name, module in original.named_modules()
        }
        self.new = new
        """The network that is converted; another one once its own root is replaced."""
        self._targets = targets
        self._example = example_input
        self.taken: list[nn.Module] = []
        """The linear layers that normalizers have taken in."""

    @cached_property
    def _trace(self) -> Trace:
        if self._example is None:
            raise OptionError("convert: example_input is missing.")
        return trace(
            self._original, self._example, whole=[self._traced(name) for name in self._targets]
        )

    def moments_of_input(
        self, target: str, mean: Sequence[float], std: Sequence[float]
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Mean and variance of a layer's input as a function of the weights before it."""
        return build_propagation(self._trace, self._traced(target), self.new, mean, std)

    def _traced(self, name: str) -> str:
        first: str = self._first[id(self._original.get_submodule(name))]
        return first

    def take_linear(self, target: str) -> tuple[str, nn.Module]:
        """Take the layer that feeds a normalization, and nobody else, out of the new network.

        An Identity stays in its place.

        Args:
            target: name of the normalization layer.

        Returns:
            The name of its linear or (transposed) convolution layer, and this layer.

        Raises:
            ConversionError: naming the layer that cannot be followed, and why.
        """
        name = self._feeding(target)
        linear = self.new.get_submodule(name)
        replace(self.new, linear, nn.Identity())
        self.taken.append(linear)
        return name, linear

    def _feeding(self, target: str) -> str:
        calls = self._trace.of_module(self._traced(target))
        source: Call | None = None
        if len(calls) == 1 and calls[0].inputs:
            source = self._trace.producer(calls[0].inputs[0])
        name = None if source is None else source.module
        if len(calls) != 1:
            problem = f"is called {len(calls)} times on the example input, not once"
        elif source is None or name is None or not is_linear(self._original.get_submodule(name)):
            problem = "is not fed directly by a linear or convolution layer"
        else:
            reason = self._not_alone(name, source)
            if reason is None:
                return name
            problem = f"is fed by {name!r}, {reason}"
        raise ConversionError(
            f"convert: layer {target!r} {problem}, so a weight normalizer cannot own the layer "
            "before it. Leave it out with only=[...], or choose another normalizer for it."
        )

    def _not_alone(self, name: str, call: Call) -> str | None:
        """Why the layer of that name cannot be taken away; None if it can."""
        times = len(self._trace.of_module(name))
        module = self._original.get_submodule(name)
        if times != 1:
            return f"which is called {times} times, not once"
        if self._trace.uses(call.outputs[0]) != 1:
            return "whose output is used elsewhere too"
        if len(list(leaves((call.args, call.kwargs)))) != 1:
            return "which is called with more than its input"
        if module._forward_hooks or module._forward_pre_hooks:
            return "which has hooks that would no longer run"
        return None


def replace(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever ``old`` is registered, and return the root."""
    if root is old:
        return new
    for parent in list(root.modules()):
        for child, module in parent._modules.items():
            if module is old:
                parent._modules[child] = new
    return root
