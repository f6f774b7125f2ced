"""Inputs and outputs of a network: tensors, in tuples, dictionaries and dataclasses; graphs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyronorm.devices import move
from pyronorm.errors import OptionError, ShapeError

__all__ = [
    "EXAMPLES_FIRST",
    "Output",
    "all_finite",
    "first_tensor",
    "is_input",
    "is_object",
    "is_one_piece",
    "map_tensors",
    "move_to",
    "num_examples",
    "refuse_call",
    "run",
    "select",
    "tensors_of",
]

EXAMPLES_FIRST = (
    "Where the network wants another axis first, or a tensor that all examples share, wrap it in a "
    "module that takes examples first, moves the axis (x.transpose(0, 1)), and keeps what is shared "
    "as a buffer."
)
"""What to do about examples on another axis."""

Output = str | int | Callable[[Any], Tensor] | None
"""What of a network's output counts: a key, attribute or index, a function of it, or None for all."""


def is_input(x: Any) -> bool:
    """Whether a network may take it: it has tensors, or is an object that moves itself."""
    return bool(tensors_of(x)) or any(_objects(x))


def is_one_piece(x: Any) -> bool:
    """Whether an input has a part that cannot be cut into examples, nor joined with others.

    A packed sequence, a batch of graphs as torch_geometric has it (an object with ``num_graphs``), any
    other object with a method ``to(device)``. Examples are then the rows of the network's output.
    """
    return any(_objects(x))


def is_object(x: Any) -> bool:
    """Whether it is an object that is handed on as it is: a packed sequence, a batch of graphs."""
    if isinstance(x, (Tensor, nn.Module, type)):
        return False
    if isinstance(x, PackedSequence) or hasattr(x, "num_graphs"):
        return True
    known = isinstance(x, (Mapping, tuple, list)) or is_dataclass(x)
    return not known and callable(getattr(x, "to", None))


def tensors_of(x: Any) -> dict[str, Tensor]:
    """The tensors of an input, by name: ``""`` for a lone tensor, else keys, fields and positions."""
    if isinstance(x, Tensor):
        return {"": x}
    found: dict[str, Tensor] = {}
    for name, part in (_inside(x) if is_object(x) else _parts(x)).items():
        for inner, tensor in tensors_of(part).items():
            found[f"{name}.{inner}" if inner else name] = tensor
    return found


def map_tensors(
    function: Callable[[Tensor], Any], x: Any, one_piece: Callable[[Any], Any] = lambda x: x
) -> Any:
    """An input of the same structure, each tensor replaced by a function of it.

    Args:
        function: of a tensor.
        x: the input.
        one_piece: what becomes of parts that are :func:`is_one_piece`; nothing if left out.
    """

    def mapped(part: Any) -> Any:
        return map_tensors(function, part, one_piece)

    if isinstance(x, Tensor):
        return function(x)
    if is_object(x):
        return one_piece(x)
    if isinstance(x, Mapping):
        return {key: mapped(part) for key, part in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(mapped(part) for part in x))
    if isinstance(x, (tuple, list)):
        return type(x)(mapped(part) for part in x)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{name: mapped(part) for name, part in _parts(x).items()})
    return x


def move_to(network: nn.Module, x: Any) -> Any:
    """Copy an input to a network's device, and to its precision where it is floating point.

    Both are those of the network's first parameter or buffer; without any, torch's defaults.
    """
    like = next(chain(network.parameters(), network.buffers()), torch.empty(0))

    def move_tensor(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point() and like.is_floating_point()
        return move(tensor, like.device, like.dtype if floating else None)

    return _put(move_tensor, x, like.device)


def _put(function: Callable[[Tensor], Tensor], x: Any, device: torch.device) -> Any:
    """Move an input: its tensors by a function, and objects as they move themselves.

    Args:
        function: moves a tensor, and may change its precision.
        x: the input; it stays as it is.
        device: where to.
    """

    def move_object(one: Any) -> Any:
        if isinstance(one, PackedSequence):  # the sizes of its batches stay on the CPU
            return PackedSequence(
                function(one.data),
                one.batch_sizes,
                None if one.sorted_indices is None else function(one.sorted_indices),
                None if one.unsorted_indices is None else function(one.unsorted_indices),
            )
        one = copy.copy(one)  # torch_geometric moves in place
        return one.apply(function) if hasattr(one, "apply") else one.to(device)

    return map_tensors(function, x, move_object)


def first_tensor(x: Any) -> Tensor:
    """The first tensor of an input, which says where it lies.

    Raises:
        ShapeError: if it has none.
    """
    if isinstance(x, Tensor):
        return x
    for tensor in tensors_of(x).values():
        return tensor
    raise ShapeError(
        "the network's input has no tensor: expected a tensor, or a tuple, dictionary or dataclass of "
        f"tensors, got {type(x).__name__}."
    )


def num_examples(x: Any) -> int:
    """The number of examples of an input, on axis 0 of every tensor.

    Raises:
        ShapeError: if tensors disagree, or one has no axes; or if it cannot be cut into examples.
    """
    if isinstance(x, Tensor) and x.ndim:
        return len(x)
    for one in _objects(x):
        raise ShapeError(
            f"the network's input is a {type(one).__name__}, which cannot be cut into examples. This "
            "needs inputs that are tensors with examples on axis 0."
        )
    lengths = {name: len(t) if t.ndim else -1 for name, t in tensors_of(x).items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        raise ShapeError(
            "the network's input must have its examples on axis 0 of every tensor, got "
            f"{ {name: tuple(t.shape) for name, t in tensors_of(x).items()} }. {EXAMPLES_FIRST}"
        )
    return len(first_tensor(x))


def run(network: nn.Module, x: Any) -> Any:
    """Call a network with an input.

    ``network(*x)`` for a tuple, ``network(**x)`` for a dictionary, else ``network(x)``.
    """
    arguments, named = _arguments(x)
    return network(*arguments, **named)


def refuse_call(network: nn.Module, x: Any) -> None:
    """Refuse an input whose parts a network does not take: other names, or too few.

    Raises:
        ShapeError: naming what the network takes.
    """
    arguments, named = _arguments(x)
    function: Any = network.forward
    method = inspect.ismethod(function)
    taken = _signature(function.__func__ if method else function)
    if taken is None:
        return
    try:
        taken.bind(*((None,) if method else ()), *arguments, **named)
    except TypeError as error:
        raise ShapeError(
            f"{type(network).__name__} takes {str(taken).replace('(self, ', '(')}, got "
            f"{f'the keys {[*named]}' if named else f'{len(arguments)} input(s)'}: {error}. Several "
            "inputs are a tuple in a pair, ((a, b), y), or a dictionary; a pair of tensors is (x, y)."
        ) from error


@lru_cache(maxsize=128)
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # of a compiled function, say
        return None


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, tuple) and not hasattr(x, "_fields") and not is_object(x):
        return x, {}
    return ((), dict(x)) if isinstance(x, Mapping) and not is_object(x) else ((x,), {})


def select(found: Any, output: Output, network: nn.Module) -> Tensor:
    """The part of a network's output that counts.

    Args:
        found: what the network returned.
        output: which part.
        network: for the message.

    Raises:
        OptionError: if there is no such part, or it is no tensor; the message lists the parts.
    """
    if output is None:
        chosen = found
    elif callable(output):
        chosen = output(found)
    elif isinstance(output, int):
        values = list(_parts(found).values())
        chosen = values[output] if -len(values) <= output < len(values) else None
    else:
        chosen = _parts(found).get(output, getattr(found, output, None))
    if isinstance(chosen, Tensor):
        return chosen
    names = [name for name, part in _parts(found).items() if isinstance(part, Tensor)]
    shown = (
        ", ".join(f"output={int(name) if name.isdigit() else name!r}" for name in names)
        or "output=a function of it"
    )
    asked = "" if output is None else f" and output={output!r} is no tensor of it"
    raise OptionError(
        f"LatentNetwork: {type(network).__name__} returns {type(found).__name__}{asked}; the likelihood "
        f"needs one tensor. Say which: {shown}, in NormalizationModel or LatentNetwork."
    )


def all_finite(x: Any) -> Tensor:
    """Whether all floating point values of an input are finite, as a tensor without axes."""
    parts = [_finite(t.detach()) for t in tensors_of(x).values() if t.is_floating_point()]
    return torch.stack(parts).all() if parts else torch.tensor(True)


def _finite(x: Tensor) -> Tensor:
    # A sum is finite only if its terms are, and several times faster. It may overflow.
    if x.device.type == "cpu" and x.layout == torch.strided and not x.is_nested:
        finite = x.sum().isfinite()
        if finite:
            return finite
    return x.isfinite().all()


def _objects(x: Any) -> Iterator[Any]:
    """The parts of an input that are objects and not structures of tensors."""
    if is_object(x):
        yield x
    elif not isinstance(x, Tensor):
        for part in _parts(x).values():
            yield from _objects(part)


def _inside(x: Any) -> dict[str, Any]:
    """What tensors an object shows: where it lies, and whether its values are finite."""
    if isinstance(x, PackedSequence):
        return {"data": x.data}
    shown = x.to_dict() if callable(getattr(x, "to_dict", None)) else getattr(x, "__dict__", {})
    return {str(name): part for name, part in shown.items() if isinstance(part, Tensor)}


def _parts(x: Any) -> dict[str, Any]:
    if isinstance(x, Mapping):
        return {str(key): part for key, part in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return dict(zip(x._fields, x, strict=True))
    if isinstance(x, (tuple, list)):
        return {str(position): part for position, part in enumerate(x)}
    if is_dataclass(x) and not isinstance(x, type):
        return {f.name: getattr(x, f.name) for f in fields(x) if f.init}
    return {}
