"""Follow mean and variance per channel through a network, up to the input of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyronorm.errors import ConversionError
from pyronorm.layers.base import full_precision
from pyronorm.layers.rules import Step, UnsupportedError, normalized, rule_for
from pyronorm.layers.tracing import Call, Parameter, Trace, Value, leaves
from pyronorm.stats.propagation import Gaussian

__all__ = ["Propagation", "build_propagation"]


@dataclass(frozen=True, eq=False)
class Propagation:
    """The moments of a layer's input, as a function of the weights before it.

    Calling it follows the calls between the layer and the normalizations before it, whose outputs
    have mean ``bias`` and variance ``weight ** 2``, or the network's input. It is differentiable in
    all parameters on the way and looks at no data.

    Attributes:
        steps: operations on moments, in their order.
        source: the network's input.
        target: the layer's input.
        input_mean: mean of the network's input, per channel or one for all.
        input_std: standard deviation, likewise.
    """

    steps: tuple[Step, ...]
    source: Value
    target: Value
    input_mean: Sequence[float]
    input_std: Sequence[float]

    def __call__(self, like: Tensor) -> Gaussian:
        """Compute mean and variance, each of shape ``(channel,)``.

        Args:
            like: gives device and dtype.
        """
        known = {self.source: self._input(like)}
        with full_precision(like):
            for step in self.steps:
                inputs = [known[value] for value in step.call.inputs if value in known]
                mean, var = step.rule(step, *inputs)
                known[step.call.outputs[0]] = mean.to(like.dtype), var.to(like.dtype)
        return known[self.target]

    def _input(self, like: Tensor) -> Gaussian:
        channels = self.source.shape[1]
        mean, std = (like.new_tensor(x).expand(channels) for x in (self.input_mean, self.input_std))
        return mean, std.square()


def build_propagation(
    trace: Trace,
    target: str,
    network: nn.Module,
    input_mean: Sequence[float],
    input_std: Sequence[float],
) -> Propagation:
    """Make the propagation to the input of a layer.

    Args:
        trace: of the network, with all normalization layers taken as a whole.
        target: name of the layer.
        network: the network in which to look modules up; names are those of the trace.
        input_mean: see :class:`Propagation`.
        input_std: see :class:`Propagation`.

    Raises:
        ConversionError: naming the operation it cannot follow.
    """
    calls = trace.of_module(target)
    if len(calls) != 1:
        raise ConversionError(
            f"convert: layer {target!r} is called {len(calls)} times on the example input, not once, "
            "so its input has no single mean and variance. Leave it out with only=[...]."
        )
    for size in (len(input_mean), len(input_std)):
        if size not in (1, trace.input.shape[1]):
            raise ConversionError(
                f"convert: input statistics for {size} channels, but the example input has "
                f"{trace.input.shape[1]} (shape {tuple(trace.input.shape)})."
            )
    steps: dict[int, Step] = {}
    wanted = list(calls[0].inputs[:1])
    while wanted:
        value = wanted.pop()
        call = trace.producer(value)
        if call is None or trace.calls.index(call) in steps:
            continue
        step = _step(call, network, target)
        steps[trace.calls.index(call)] = step
        if step.rule is not normalized:
            wanted += call.inputs
    ordered = tuple(steps[index] for index in sorted(steps))
    result = Propagation(ordered, trace.input, calls[0].inputs[0], input_mean, input_std)
    _try(result, target)
    return result


def _step(call: Call, network: nn.Module, target: str) -> Step:
    module = None if call.module is None else network.get_submodule(call.module)
    rule = rule_for(call, module)
    if rule is None or len(call.outputs) != 1:
        raise _refusal(call, target, module, "")
    parameters = [p for p in leaves((call.args, call.kwargs)) if isinstance(p, Parameter)]
    owners = {p.owner: network.get_submodule(p.owner) for p in parameters}
    return Step(call, rule, module, network.get_submodule(call.place), owners)


@torch.no_grad()
def _try(propagation: Propagation, target: str) -> None:
    """Run every rule once, so that what it cannot do is refused now."""
    like = torch.empty(0)
    for step in propagation.steps:
        for module in (step.module, step.place, *step.owners.values()):
            for tensor in () if module is None else module.parameters():
                like = tensor.new_empty(0)
    known: dict[Value, Gaussian] = {propagation.source: propagation._input(like)}
    for step in propagation.steps:
        try:
            inputs = [known[value] for value in step.call.inputs if value in known]
            out = step.rule(step, *inputs)
        except UnsupportedError as error:
            raise _refusal(step.call, target, step.module, f" {error}") from None
        channels = step.out_shape[1] if len(step.out_shape) > 1 else None
        if channels is None or len(out[0]) != channels:
            shapes = f" from shape {tuple(step.shape)} to {tuple(step.out_shape)}"
            raise _refusal(step.call, target, step.module, shapes)
        known[step.call.outputs[0]] = out


def _refusal(call: Call, target: str, module: nn.Module | None, detail: str) -> ConversionError:
    kind = "" if module is None else f" ({type(module).__name__})"
    return ConversionError(
        f"convert: cannot propagate moments to layer {target!r} through {call.describe()}{kind}"
        f"{detail}. Leave that layer out with only=[...], or choose another normalizer for it."
    )
