"""Handing latents to layers, for the time of one call and of its recomputation.

Latents are no arguments of a layer's forward, since the layer sits inside somebody's network. They
are not kept in the layer either: calls in other threads share it. What is handed over belongs to a
*call*, which is current in one thread.

**Activation checkpointing** (:func:`torch.utils.checkpoint.checkpoint`) runs a part of the network
again in the backward pass, when the call is over. So the graph of the call's output keeps the call,
and has it ready when its backward pass begins. The reentrant variant runs the part without a graph
first, then differentiates it on its own: its layers are given copies of their latents, and the
gradients of the copies are added to those of the latents themselves.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pyronorm.errors import OptionError

__all__ = ["Seen", "handed_over", "is_handing_over", "present_call"]

Pairs = Mapping[nn.Module, tuple[Tensor, Tensor]]


class Seen:
    """What the outputs of layers are like.

    Attributes:
        largest: elements of the largest one.
    """

    def __init__(self) -> None:
        self.largest = 0

    def note(self, output: Tensor) -> None:
        """Take the output of a layer into account."""
        self.largest = max(self.largest, output.numel())


@no_type_check  # torch.compile cannot see through run-time type checks here
class handed_over:  # noqa: N801
    """Context in which layers have latents, in this thread; the only place that gives them any.

    Contexts nest: layers that the inner one says nothing of keep what the outer one gave them.

    Args:
        latents: shift and scale of some layers.
        shared: for some layers what their normalizers computed once for all draws.
        folded: for some layers weight and bias with the latents in them, computed for all at once.
        seen: gets what the layers' outputs are like.
    """

    def __init__(
        self,
        latents: Pairs,
        shared: Mapping[nn.Module, Any] | None = None,
        seen: Seen | None = None,
        folded: Pairs | None = None,
    ) -> None:
        self.latents, self.shared, self.seen = latents, shared or {}, seen
        self.folded = folded or {}
        self.recorded = False  # whether autograd records the call
        self.hidden: set[nn.Module] = set()  # layers that ran where it did not
        self.copies: dict[Tensor, Tensor] = {}

    def __enter__(self) -> handed_over:
        self._before = before = _HANDED.now
        if before is not None:
            theirs = {k: v for k, v in before.folded.items() if k not in self.latents}
            self.folded = {**theirs, **self.folded}
            self.latents = {**before.latents, **self.latents}
            self.shared = {**before.shared, **self.shared}
            self.seen = before.seen if self.seen is None else self.seen
        self.recorded = torch.is_grad_enabled()
        _HANDED.now = self
        return self

    def __exit__(self, *error: object) -> None:
        _HANDED.now = self._before
        self._before = None

    def given(self, layer: nn.Module, things: Mapping[nn.Module, Any]) -> Any:
        """What the layer has of ``things``, such as :attr:`latents`; None for nothing."""
        thing = things.get(layer)
        if thing is None or not self.recorded:
            return thing
        if _HANDED.now is self:
            if not torch.is_grad_enabled():
                self.hidden.add(layer)
            return thing
        return tree_map_only(Tensor, self._copy, thing) if layer in self.hidden else thing

    def _copy(self, value: Tensor) -> Tensor:
        if not value.requires_grad or value.is_leaf:  # a leaf collects its gradient itself
            return value
        if value not in self.copies:
            self.copies[value] = value.detach().requires_grad_()
        return self.copies[value]

    def kept(self, output: Any) -> Any:
        """The output, with a graph that gives the layers the same again in the backward pass.

        Args:
            output: a tensor, or any nesting of containers with tensors, computed in this context.
        """
        if not self.recorded or not (self.latents or self.shared):
            return output
        if self.hidden:
            output = _map_tensors(self._tied(), output)
        hook = _Begin(self)

        def keep(value: Tensor) -> Tensor:
            if value.grad_fn is not None:
                value.grad_fn.register_prehook(hook)
            return value

        return _map_tensors(keep, output)

    def _tied(self) -> Callable[[Tensor], Tensor]:
        """Let the gradients of copies, computed in the backward pass, join those of the originals."""
        kinds = (self.latents, self.shared, self.folded)
        things = [t.get(layer) for layer in self.hidden for t in kinds]
        tensors = [v for v in tree_leaves(things) if isinstance(v, Tensor)]
        originals = [v for v in tensors if v.requires_grad and not v.is_leaf]
        for value in originals:
            value.register_hook(_Join(self, value))

        def tie(value: Tensor) -> Tensor:
            apply: Any = _Tie.apply
            return apply(value, *originals) if value.requires_grad else value

        return tie


def _map_tensors(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output)
    if is_dataclass(output) and not isinstance(output, type):
        parts = {f.name: getattr(output, f.name) for f in fields(output) if f.init}
        return replace(output, **{k: _map_tensors(function, v) for k, v in parts.items()})
    return tree_map_only(Tensor, function, output)


class _Begin:
    """Has a call ready when the backward pass of its output begins."""

    def __init__(self, call: handed_over) -> None:
        self._call = call

    def __call__(self, gradients: Any) -> None:
        task = torch._C._current_graph_task_id()
        if task not in _BACKWARD:
            _BACKWARD[task] = []
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: _BACKWARD.pop(task, None))
        _BACKWARD[task].append(weakref.ref(self._call))


class _Join:
    """Adds what the copy of a tensor has collected to the gradient of the tensor."""

    def __init__(self, call: handed_over, value: Tensor) -> None:
        # Weakly: the hook belongs to the tensor, and the call holds that.
        self._call, self._value = weakref.ref(call), weakref.ref(value)

    def __call__(self, gradient: Tensor) -> Tensor:
        call, value = self._call(), self._value()
        copy = None if call is None or value is None else call.copies.pop(value, None)
        return gradient if copy is None or copy.grad is None else gradient + copy.grad


class _Tie(torch.autograd.Function):
    """The first argument; the others are waited for in the backward pass, and get zeros."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *originals: Tensor) -> Tensor:
        ctx.save_for_backward(*originals)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(v) for v in ctx.saved_tensors)


class _Handed(threading.local):
    """The present call of this thread.

    torch.compile reads and writes such variables, while it cannot follow those of ``contextvars``.
    """

    def __init__(self) -> None:
        # In each thread's own dictionary from the start, which compiled code looks into.
        self.now: handed_over | None = None


_HANDED = _Handed()

# The calls whose backward pass has begun, by the engine's number of it, the last one at the end. Not
# by thread: on a GPU the engine has a thread of its own, for the backward passes of all others.
_BACKWARD: dict[int, list[weakref.ref[handed_over]]] = {}


def is_handing_over() -> bool:
    """Whether this thread is in a call that hands something over."""
    return _HANDED.now is not None


def present_call(layer: nn.Module) -> handed_over | None:
    """The call that a layer runs in, or is run again for."""
    now = _HANDED.now
    if not _BACKWARD or (now is not None and (layer in now.latents or layer in now.shared)):
        return now
    task = torch._C._current_graph_task_id()
    if task == -1:
        return now
    calls = _BACKWARD.get(task)
    if calls is None:  # the backward pass of a checkpointed part, within another one
        if len(_BACKWARD) > 1:
            raise OptionError(
                f"{getattr(layer, 'name', layer)}: nested reentrant checkpoints in backward passes of "
                "several threads: it is not known for which of them this layer runs again. Use "
                "use_reentrant=False."
            )
        (calls,) = _BACKWARD.values()
    for found in map(weakref.ref.__call__, reversed(calls)):
        if found is not None and (layer in found.latents or layer in found.shared):
            return found
    return now
