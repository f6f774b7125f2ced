"""Run a network once and write down what it calls, with which tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from pyronorm.errors import ConversionError

__all__ = ["Call", "Parameter", "Trace", "Value", "leaves", "trace"]


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input. A tensor changed in place is a new value."""

    number: int
    shape: torch.Size


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the network.

    Attributes:
        owner: name of the module that holds it.
        attribute: its name there.
    """

    owner: str
    attribute: str


@dataclass(frozen=True, eq=False)
class Call:
    """A module or a torch function that was called.

    Attributes:
        place: name of the module whose code made the call.
        module: name of the module called; None for a function.
        function: the function called; None for a module.
        args: positional arguments, tensors replaced by Value or Parameter where they are known.
        kwargs: keyword arguments, likewise.
        outputs: the tensors it returned.
    """

    place: str
    module: str | None
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...]

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values among the arguments."""
        return tuple(x for x in leaves((self.args, self.kwargs)) if isinstance(x, Value))

    def describe(self) -> str:
        """What was called and where, for messages."""
        where = f" in {self.place!r}" if self.place else ""
        if self.module is not None:
            return f"module {self.module!r}"
        return f"operation {getattr(self.function, '__name__', self.function)!r}{where}"


@dataclass(frozen=True, eq=False)
class Trace:
    """The calls of one run, in their order.

    Attributes:
        calls: what was called.
        input: the network's input.
        outputs: the tensors that the network returned.
    """

    calls: tuple[Call, ...]
    input: Value
    outputs: tuple[Value, ...]

    def of_module(self, name: str) -> list[Call]:
        """The calls of that module."""
        return [call for call in self.calls if call.module == name]

    def producer(self, value: Value) -> Call | None:
        """The call that returned a value; None for the input."""
        return next((call for call in self.calls if value in call.outputs), None)

    def uses(self, value: Value) -> int:
        """How often a value is an argument, or returned by the network."""
        used = [v for call in self.calls for v in call.inputs] + list(self.outputs)
        return used.count(value)


def leaves(tree: Any) -> Iterator[Any]:
    """What stands in nested tuples, lists and dicts."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        for part in tree:
            yield from leaves(part)
    else:
        yield tree


@torch.no_grad()
def trace(network: nn.Module, example_input: Tensor, whole: Collection[str] = ()) -> Trace:
    """Run a network on an input, and write down its calls.

    It runs in evaluation mode, on a copy of itself, hooks included. Layers of torch without
    children, linear and convolution layers (parametrized ones too) and the modules named are written
    down as a whole; inside of all others every torch function is.

    Args:
        network: any network of one tensor.
        example_input: a batch as the network takes it.
        whole: names of further modules to take as a whole.

    Raises:
        ConversionError: if the network does not run on ``example_input``.
    """
    network = copy.deepcopy(network).eval()
    tape = _Tape(network, example_input)
    for name, module in network.named_modules():
        if name in whole or _is_whole(module):
            # Innermost, so that what the network's own hooks compute is written down too.
            module.register_forward_pre_hook(tape.enter_whole)
            module.register_forward_hook(tape.leave_whole(name), with_kwargs=True, prepend=True)
        else:
            module.register_forward_pre_hook(tape.enter(name), prepend=True)
            module.register_forward_hook(tape.leave)
    try:
        with tape:
            output = network(example_input)
    except Exception as error:
        raise ConversionError(
            f"convert: {type(network).__name__} does not run on example_input of shape "
            f"{tuple(example_input.shape)}: {error}"
        ) from error
    returned = (x for x in leaves(tape.known(output)) if isinstance(x, Value))
    return Trace(tuple(tape.calls), tape.input, tuple(returned))


def _is_whole(module: nn.Module) -> bool:
    leaf = next(module.children(), None) is None and not isinstance(module, nn.Sequential)
    torchs = type(module).__module__.startswith("torch.nn.")
    return (leaf and torchs) or isinstance(module, (nn.Linear, _ConvNd))


class _Tape(TorchFunctionMode):
    """Sees every torch function, and by its hooks the modules."""

    def __init__(self, network: nn.Module, example_input: Tensor) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._numbers = 0
        self._known: dict[int, Value | Parameter] = {}
        self._kept: list[Any] = []  # keeps tensors alive, so that ids stay unique
        self._places = [""]
        self._inside = 0  # depth inside of modules taken as a whole
        for owner, module in network.named_modules():
            for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._known[id(tensor)] = Parameter(owner, attribute)
        self.input = self._new(example_input)

    def _new(self, tensor: Tensor) -> Value:
        self._kept.append(tensor)
        self._numbers += 1
        value = self._known[id(tensor)] = Value(self._numbers, tensor.shape)
        return value

    def known(self, tree: Any) -> Any:
        """The tree with known tensors replaced."""
        if isinstance(tree, Tensor):
            return self._known.get(id(tree), tree)
        if isinstance(tree, (tuple, list)):
            return tuple(self.known(part) for part in tree)
        if isinstance(tree, dict):
            return {key: self.known(part) for key, part in tree.items()}
        return tree

    def _note(
        self,
        module: str | None,
        function: Callable[..., Any] | None,
        args: Any,
        kwargs: Any,
        y: Any,
    ) -> None:
        args, kwargs = self.known(args), self.known(kwargs)
        outputs = tuple(self._new(x) for x in leaves(y) if isinstance(x, Tensor))
        if outputs:
            self.calls.append(Call(self._places[-1], module, function, args, kwargs, outputs))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        before = self.known(args), self.known(kwargs)
        result = func(*args, **kwargs)
        changed = args[0] if getattr(func, "__name__", "") == "__setitem__" else result
        self._note(None, func, *before, changed)
        return result

    def enter(self, name: str) -> Callable[..., None]:
        """A hook that runs before a module whose calls are written down."""

        def hook(module: nn.Module, args: Any) -> None:
            self._places.append(name)

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook that runs after it."""
        self._places.pop()

    def enter_whole(self, module: nn.Module, args: Any) -> None:
        """A hook that runs before a module taken as a whole."""
        self._inside += 1

    def leave_whole(self, name: str) -> Callable[..., None]:
        """A hook that runs after it."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._inside -= 1
            if not self._inside:
                self._note(name, None, args, kwargs, output)

        return hook
