"""Run a network once and write down what it calls, with which tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from pyronorm.errors import ConversionError
from pyronorm.inputs import map_tensors, move_to, run, tensors_of
from pyronorm.normalizers.base import LatentNorm
from pyronorm.propagation.copies import copied

__all__ = ["Call", "Parameter", "Trace", "Value", "leaves", "trace"]


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input. A tensor changed in place is a new value."""

    number: int
    shape: torch.Size
    dtype: torch.dtype


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
        function: name of the function called (``relu_``, ``__rsub__``); None for a module. A name,
            so that calls can be pickled.
        args: positional arguments, tensors replaced by Value or Parameter where they are known.
        kwargs: keyword arguments, likewise.
        outputs: the tensors it returned; none for a call that reads numbers out of a tensor.
    """

    place: str
    module: str | None
    function: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...]

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """The values among the arguments."""
        return tuple(x for x in leaves((self.args, self.kwargs)) if isinstance(x, Value))

    def describe(self) -> str:
        """What was called and where, for messages."""
        where = f" in {self.place!r}" if self.place else ""
        if self.module is not None:
            return f"module {self.module!r}"
        return f"operation {self.function!r}{where}"


@dataclass(frozen=True, eq=False)
class Trace:
    """The calls of one run, in their order.

    Attributes:
        calls: what was called.
        inputs: the tensors of the network's input.
        outputs: the tensors that the network returned.
    """

    calls: tuple[Call, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def of_module(self, name: str) -> list[Call]:
        """The calls of that module."""
        return [call for call in self.calls if call.module == name]

    def producer(self, value: Value) -> Call | None:
        """The call that returned a value; None for an input."""
        return self._producers.get(value)

    @cached_property
    def _producers(self) -> dict[Value, Call]:
        return {value: call for call in self.calls for value in call.outputs}

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


@torch.inference_mode(False)
@torch.no_grad()
def trace(network: nn.Module, example_input: Any, whole: Collection[str] = ()) -> Trace:
    """Run a network on an input, and write down its calls.

    It runs in evaluation mode, on a copy of itself, hooks included. Layers of torch without
    children, linear and convolution layers (parametrized ones too), latent layers and the modules
    named are written down as a whole; inside of all others every torch function is. A call that
    hands on its input as it is (``x.contiguous()``, Identity) is left out, except for dropout, which
    does so in evaluation mode only.

    Args:
        network: any network.
        example_input: a batch as the network takes it, on any device: a tensor, or a tuple, dictionary
            or dataclass of tensors.
        whole: names of further modules to take as a whole.

    Raises:
        ConversionError: if the network does not run on ``example_input``.
    """
    network = copied(network).eval()
    # the network may change it in place
    x = map_tensors(lambda tensor: tensor.detach().clone(), move_to(network, example_input))
    tape = _Tape(network, tuple(tensors_of(x).values()))
    for name, module in network.named_modules():
        if name in whole or _is_whole(module):
            # Innermost, so that what the network's own hooks compute is written down too.
            module.register_forward_pre_hook(tape.enter_whole, with_kwargs=True)
            module.register_forward_hook(tape.leave_whole(name), prepend=True)
        else:
            module.register_forward_pre_hook(tape.enter(name), prepend=True)
            module.register_forward_hook(tape.leave)
    try:
        with tape:
            output = run(network, x)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(x).values())
        raise ConversionError(
            f"convert: {type(network).__name__} does not run on example_input of shape {shapes}: {error}"
        ) from error
    returned = (y for y in leaves(tape.known(output)) if isinstance(y, Value))
    return Trace(tuple(tape.calls), tape.inputs, tuple(returned))


def _is_whole(module: nn.Module) -> bool:
    kind: Any = type(module)
    if isinstance(module, LatentNorm):
        return True
    if "forward" in vars(module):  # put there by somebody
        return False
    if isinstance(module, (nn.Linear, _ConvNd)):  # unless a subclass computes something else
        own = (kind.forward, getattr(kind, "_conv_forward", kind.forward))
        return all(_is_torchs(method) for method in own)
    leaf = next(module.children(), None) is None and not isinstance(module, nn.Sequential)
    return leaf and _is_torchs(kind)


def _is_torchs(what: Any) -> bool:
    return str(what.__module__).startswith("torch.nn.")


# What hands a tensor's numbers to Python, where nobody can follow them.
_READS = {
    *("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__"),
    *("__complex__", "__contains__", "is_nonzero", "equal", "allclose"),
}


@dataclass(frozen=True, eq=False)
class _Arguments:
    """Arguments of a call as they were before it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: dict[int, int]  # of the tensors among them, by id


class _Tape(TorchFunctionMode):
    """Sees every torch function, and by its hooks the modules."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._numbers = 0
        self._known: dict[int, Value | Parameter] = {}
        self._versions: dict[int, int] = {}
        self._kept: list[Any] = []  # keeps tensors alive, so that ids stay unique
        self._places = [""]
        self._inside = 0  # depth inside of modules taken as a whole
        self._arguments = _Arguments((), {}, {})  # of the outermost of them
        for owner, module in network.named_modules():
            for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._known[id(tensor)] = Parameter(owner, attribute)
                    self._versions[id(tensor)] = _version(tensor)
        self.inputs = tuple(self._new(tensor) for tensor in inputs)

    def _new(self, tensor: Tensor) -> Value:
        self._kept.append(tensor)
        self._numbers += 1
        value = self._known[id(tensor)] = Value(self._numbers, tensor.shape, tensor.dtype)
        self._versions[id(tensor)] = _version(tensor)
        return value

    def known(self, tree: Any) -> Any:
        """The tree with known tensors replaced."""
        if isinstance(tree, Tensor):
            return self._look_up(tree)
        if isinstance(tree, (tuple, list)):
            return tuple(self.known(part) for part in tree)
        if isinstance(tree, dict):
            return {key: self.known(part) for key, part in tree.items()}
        return tree

    def _look_up(self, tensor: Tensor) -> Value | Parameter | Tensor:
        found = self._known.get(id(tensor))
        if found is None:
            return tensor
        if self._versions[id(tensor)] != _version(tensor):
            # In place, but not through this tensor: that would have made it a new value.
            change = "change in place through another view"
            new = self._new(tensor)
            self.calls.append(Call(self._places[-1], None, change, (found,), {}, (new,)))
            return new
        return found

    def _look(self, args: Any, kwargs: Any) -> _Arguments:
        versions = {id(x): _version(x) for x in leaves((args, kwargs)) if isinstance(x, Tensor)}
        return _Arguments(self.known(args), self.known(kwargs), versions)

    def _note(
        self, module: str | None, function: str | None, before: _Arguments, result: Any, drops: bool
    ) -> Any:
        """Write down a call, and return its result."""
        if isinstance(result, Tensor) and before.versions.get(id(result)) == _version(result):
            if not drops:
                return result  # handed on as it is
            result = result.view_as(result)  # to know it from the input
        outputs = tuple(self._new(x) for x in leaves(result) if isinstance(x, Tensor))
        call = Call(self._places[-1], module, function, before.args, before.kwargs, outputs)
        reads = function in _READS and any(
            isinstance(x, (Value, Parameter)) for x in leaves((call.args, call.kwargs))
        )
        if outputs or reads:
            self.calls.append(call)
        return result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        name = _name(func)
        before = self._look(args, kwargs)
        result = func(*args, **kwargs)
        if name == "__setitem__":
            self._note(None, name, before, args[0], False)
            return result
        return self._note(None, name, before, result, "dropout" in name)

    def enter(self, name: str) -> Callable[..., None]:
        """A hook that runs before a module whose calls are written down."""

        def hook(module: nn.Module, args: Any) -> None:
            self._places.append(name)

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook that runs after it."""
        self._places.pop()

    def enter_whole(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A hook that runs before a module taken as a whole."""
        if not self._inside:
            self._arguments = self._look(args, kwargs)
        self._inside += 1

    def leave_whole(self, name: str) -> Callable[..., Any]:
        """A hook that runs after it."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if self._inside == 1:
                drops = isinstance(module, nn.modules.dropout._DropoutNd)
                output = self._note(name, None, self._arguments, output, drops)
            self._inside -= 1
            return output

        return hook


def _name(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    if name == "__get__":  # of a property
        name = getattr(function.__self__, "__name__", name)
    return str(name)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
