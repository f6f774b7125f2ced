"""Inputs and outputs of a network: one tensor, or several in a tuple, a dictionary or a dataclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.devices import move
from pyronorm.errors import OptionError, ShapeError

__all__ = [
    "Output",
    "all_finite",
    "first_tensor",
    "map_tensors",
    "move_to",
    "num_examples",
    "run",
    "select",
    "tensors_of",
]

Output = str | int | Callable[[Any], Tensor] | None
"""What of a network's output counts: a key, attribute or index, a function of it, or None for all."""


def tensors_of(x: Any) -> dict[str, Tensor]:
    """The tensors of an input, by name: ``""`` for a lone tensor, else keys, fields and positions."""
    if isinstance(x, Tensor):
        return {"": x}
    found: dict[str, Tensor] = {}
    for name, part in _parts(x).items():
        for inner, tensor in tensors_of(part).items():
            found[f"{name}.{inner}" if inner else name] = tensor
    return found


def map_tensors(function: Callable[[Tensor], Any], x: Any) -> Any:
    """An input of the same structure, each tensor replaced by a function of it."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {key: map_tensors(function, part) for key, part in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(map_tensors(function, part) for part in x))
    if isinstance(x, (tuple, list)):
        return type(x)(map_tensors(function, part) for part in x)
    if is_dataclass(x) and not isinstance(x, type):
        own = _parts(x)
        return replace(x, **{name: map_tensors(function, part) for name, part in own.items()})
    return x


def move_to(network: nn.Module, x: Any) -> Any:
    """Copy an input to the device of a network, that of its first parameter or buffer."""
    first = next(chain(network.parameters(), network.buffers()), None)
    return x if first is None else map_tensors(lambda tensor: move(tensor, first.device), x)


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
        ShapeError: if tensors disagree, or one has no axes.
    """
    if isinstance(x, Tensor):
        return len(x)
    lengths = {name: len(t) if t.ndim else -1 for name, t in tensors_of(x).items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        raise ShapeError(
            "the network's input must have its examples on axis 0 of every tensor, got "
            f"{ {name: tuple(t.shape) for name, t in tensors_of(x).items()} }."
        )
    return len(first_tensor(x))


def run(network: nn.Module, x: Any) -> Any:
    """Call a network with an input.

    ``network(*x)`` for a tuple, ``network(**x)`` for a dictionary, else ``network(x)``.
    """
    if isinstance(x, tuple) and not hasattr(x, "_fields"):
        return network(*x)
    if isinstance(x, Mapping):
        return network(**x)
    return network(x)


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
    parts = [t.isfinite().all() for t in tensors_of(x).values() if t.is_floating_point()]
    return torch.stack(parts).all() if parts else torch.tensor(True)


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
