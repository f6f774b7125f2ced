"""Follow mean and variance per channel through a network, up to the input of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pyronorm.display import displayed
from pyronorm.errors import ConversionError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.kernels import full_precision
from pyronorm.propagation.operations import operation_for
from pyronorm.propagation.steps import Step, UnsupportedError
from pyronorm.propagation.tracing import Call, Parameter, Trace, Value, leaves
from pyronorm.stats.propagation import Gaussian

__all__ = ["Propagation", "build_propagation", "propagate"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
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
            like: gives device and dtype (float32 at least).
        """
        return propagate([self], like)[0]

    @staticmethod
    def together(propagations: Sequence[Propagation], like: Tensor) -> list[Gaussian]:
        """The moments of several layers' inputs, by :func:`propagate`."""
        return propagate(propagations, like)

    def run(self, steps: Iterable[Step], like: Tensor) -> Iterator[tuple[int, Gaussian]]:
        """Do the steps one by one, and give the number of each one's output with its moments.

        Args:
            steps: operations on moments, in an order that they can be done in.
            like: gives device and dtype.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        like = like.new_empty(0, dtype=dtype)
        channels = self.source.shape[1]
        # Filled on the device: new_tensor would copy from the host, which waits for the device.
        mean, std = (
            torch.stack([like.new_full((), value) for value in x]).expand(channels)
            for x in (self.input_mean, self.input_std)
        )
        # By number: torch 2.6 compiles no dictionary with values as keys.
        known = {self.source.number: (mean, std.square())}
        yield self.source.number, known[self.source.number]
        for step in steps:
            inputs = [known[value.number] for value in step.inputs if value.number in known]
            mean, var = step.moments(*inputs)
            output = step.call.outputs[0].number
            known[output] = mean.to(like), var.to(like)
            yield output, known[output]


def propagate(propagations: Sequence[Propagation], like: Tensor) -> list[Gaussian]:
    """Compute the moments of several layers' inputs, sharing what they have in common.

    Args:
        propagations: of one network, as :func:`pyronorm.convert` made them.
        like: gives device and dtype (float32 at least).

    Returns:
        For each, mean and variance, each of shape ``(channel,)``.
    """
    runs: dict[int, list[Propagation]] = {}  # by their trace: its values have numbers of their own
    for propagation in propagations:
        runs.setdefault(id(propagation.source), []).append(propagation)
    known: dict[tuple[int, int], Gaussian] = {}
    with full_precision(like):
        for key, together in runs.items():
            steps = {s.call.outputs[0].number: s for p in together for s in p.steps}
            ordered = [steps[number] for number in sorted(steps)]
            for number, moments in together[0].run(ordered, like):
                known[key, number] = moments
    return [known[id(p.source), p.target.number] for p in propagations]


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
            f"so its input has no single mean and variance. {_WAY_OUT}"
        )
    if len(trace.inputs) != 1:
        raise ConversionError(
            "convert: moments are propagated from one tensor, but the network takes "
            f"{len(trace.inputs)}. {_WAY_OUT}"
        )
    (begin,) = trace.inputs
    if len(begin.shape) < 2:
        raise ConversionError(
            "convert: moments are propagated from an input of shape (batch, channel, *spatial), but "
            f"the example input has the shape {tuple(begin.shape)}."
        )
    for size in (len(input_mean), len(input_std)):
        if size not in (1, begin.shape[1]):
            raise ConversionError(
                f"convert: input statistics for {size} channels, but the example input has "
                f"{begin.shape[1]} (shape {tuple(begin.shape)})."
            )
    source = _input_of(calls[0], network.get_submodule(target))
    for earlier in trace.calls[: trace.calls.index(calls[0])]:
        if not earlier.outputs:
            raise _refusal(earlier, target, None, ", which makes numbers of a tensor")
    steps: dict[int, Step] = {}
    wanted = [source]
    while wanted:
        value = wanted.pop()
        call = trace.producer(value)
        if call is None or call.outputs[0].number in steps:
            continue
        step = _step(call, trace, network, target)
        steps[call.outputs[0].number] = step
        if not step.operation.begins:
            wanted += step.inputs
    ordered = tuple(steps[number] for number in sorted(steps))
    result = Propagation(ordered, begin, source, input_mean, input_std)
    _try(result, target)
    return result


def _input_of(call: Call, module: nn.Module) -> Value:
    """The one input of a layer, if its channels are on axis 1."""
    problem = None
    if len(call.inputs) != 1:
        problem = "does not take a tensor that can be followed from the network's input"
    elif getattr(module, "channel_last", False) and len(call.inputs[0].shape) > 2:
        problem = f"has its channels on the last axis of an input {tuple(call.inputs[0].shape)}"
    if problem is not None:
        raise ConversionError(f"convert: layer {call.module!r} {problem}. {_WAY_OUT}")
    return call.inputs[0]


def _step(call: Call, trace: Trace, network: nn.Module, target: str) -> Step:
    module = None if call.module is None else network.get_submodule(call.module)
    operation = operation_for(call, module)
    if operation is None or len(call.outputs) != 1:
        raise _refusal(call, target, module, "")
    if not call.inputs:
        raise _refusal(call, target, module, " of something other than the network's input")
    if not call.outputs[0].dtype.is_floating_point:
        raise _refusal(call, target, module, f" with a result of {call.outputs[0].dtype}")
    if len(call.inputs) > 1 and not operation.several:
        raise _refusal(call, target, module, " with a computed weight or other argument")
    if len(call.inputs) > 1 and operation.independent:
        origins = [_origins(value, trace, network) for value in call.inputs]
        if len(set().union(*origins)) < sum(map(len, origins)):
            detail = (
                " of two values that are functions of the same value, so they are not independent"
            )
            raise _refusal(call, target, module, detail)
    parameters = [p for p in leaves((call.args, call.kwargs)) if isinstance(p, Parameter)]
    owners = {p.owner: network.get_submodule(p.owner) for p in parameters}
    step = Step(call, operation, module, network.get_submodule(call.place), owners)
    before = trace.producer(call.inputs[0])
    if before is not None and before.inputs and operation.maximum:
        activation = _step(before, trace, network, target)
        if activation.increasing:
            return replace(step, activation=activation)
    return step


def _origins(value: Value, trace: Trace, network: nn.Module) -> set[Value]:
    """What a value is a function of, position by position, as far back as that goes."""
    found, seen, wanted = set(), set(), [value]
    while wanted:
        value = wanted.pop()
        if value in seen:
            continue
        seen.add(value)
        call = trace.producer(value)
        module = None if call is None or call.module is None else network.get_submodule(call.module)
        if call is not None and call.inputs and _is_pointwise(call, module):
            wanted += call.inputs
        else:
            found.add(value)
    return found


def _is_pointwise(call: Call, module: nn.Module | None) -> bool:
    if isinstance(module, LatentNorm) and module.normalizer.owns_linear:
        return False  # the linear layer mixes positions
    operation = operation_for(call, module)
    return operation is not None and operation.pointwise


@torch.no_grad()
def _try(propagation: Propagation, target: str) -> None:
    """Run every rule once, so that what it cannot do is refused now."""
    steps = propagation.steps
    modules = (m for step in steps for m in (step.module, step.place, *step.owners.values()) if m)
    tensors = (t for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_floating_point())
    like = next(tensors, torch.empty(0))
    done = propagation.run(steps, like)
    next(done)
    for step in steps:
        try:
            _, (mean, var) = next(done)
        except UnsupportedError as error:
            raise _refusal(step.call, target, step.module, f" {error}") from None
        if len(step.out_shape) < 2 or len(mean) != step.out_shape[1]:
            shapes = f" from shape {tuple(step.shape)} to {tuple(step.out_shape)}"
            raise _refusal(step.call, target, step.module, shapes)
        if not bool(mean.isfinite().all() & var.isfinite().all()):
            raise _refusal(step.call, target, step.module, ", whose moments are not finite")


_WAY_OUT = "Leave it out with only=[...], or choose another normalizer for it."


def _refusal(call: Call, target: str, module: nn.Module | None, detail: str) -> ConversionError:
    kind = "" if module is None else f" ({type(module).__name__})"
    return ConversionError(
        f"convert: cannot propagate moments to layer {target!r} through {call.describe()}{kind}"
        f"{detail}. {_WAY_OUT.replace('it', 'that layer', 1)}"
    )
