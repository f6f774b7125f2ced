"""Checks at the doors of the library: what an argument may be, its annotation says.

``@checked`` before a public function holds arguments against the annotations before anything happens.
Numbers have names here that say which of them make sense: ``num_samples: Count``.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from numbers import Real
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor

from pyronorm.errors import OptionError, ShapeError

__all__ = [
    "LATER",
    "Count",
    "Finite",
    "Natural",
    "NotNegative",
    "Positive",
    "Probability",
    "Range",
    "check_count",
    "check_fields",
    "check_instance",
    "check_positive",
    "checked",
]

_EXAMPLES = {
    "Draws": "posterior.draw(model, 1000)",
    "Likelihood": "Categorical()",
    "NormalizationModel": "NormalizationModel(network, ...)",
    "Normalizer": "Batch()",
    "Prior": "BatchNoise(64)",
    "StatisticsBank": "collect_bank(network, data)",
}
"""How objects are made, for messages."""

F = TypeVar("F", bound=Callable[..., Any])


class Range(NamedTuple):
    """Which numbers make sense, for an annotation.

    Args:
        words: the range in words, for messages.
        least: the smallest.
        most: the largest.
        open: whether the ends themselves make no sense.
    """

    words: str
    least: float = -math.inf
    most: float = math.inf
    open: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number lies in it."""
        if self.open:
            return bool(self.least < value < self.most)
        return bool(self.least <= value <= self.most)


Count = Annotated[int, Range("at least 1, an integer", 1)]
Natural = Annotated[int, Range("at least 0, an integer", 0)]
Positive = Annotated[float, Range("positive and finite", 0, open=True)]
NotNegative = Annotated[float, Range("finite and not negative", 0, sys.float_info.max)]
Finite = Annotated[float, Range("a finite number", -sys.float_info.max, sys.float_info.max)]
Probability = Annotated[float, Range("between 0 and 1", 0, 1, open=True)]


LATER = "checked where it is used"
"""In an annotation: nothing is checked at the door."""


def checked(function: F) -> F:
    """Hold the arguments of a function against its annotations, before anything happens.

    An ``int`` is an integer, but not ``True``; a ``float`` any real number; a ``Tensor`` is one
    of real numbers, with the axes that its annotation names; a class stands for its objects, not for
    itself. What an annotation says of the elements of a list or of the values of a mapping holds too.
    Flags are Python's: any object is true or false. Names that are imported for type checking alone,
    and ``Any``, mean anything.

    Args:
        function: a function, a method, or a class's ``__init__``.

    Raises:
        OptionError: by the function it makes, naming it, the argument, what was expected and what came.
        ShapeError: by that function, if a tensor has another number of axes.
    """
    names = _positional(function)
    method = names[:1] in (["self"], ["cls"])
    known: dict[str, Any] = {}

    @functools.wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        if not known:  # annotations may name what is defined further down in the module
            known.update(_hints(function))
        for name, value in zip(names, args, strict=False):
            hint = known[name]
            if hint is not Any and not _fits(hint, value):
                _refuse(_where(function, args if method else ()), name, hint, value)
        for name, value in kwargs.items():
            hint = known.get(name, Any)
            if hint is not Any and not _fits(hint, value):
                _refuse(_where(function, args if method else ()), name, hint, value)
        return function(*args, **kwargs)

    return door  # type: ignore[return-value]


def check_fields(settings: Any) -> None:
    """Hold the fields of a dataclass against their annotations, in its ``__post_init__``.

    Args:
        settings: the object.

    Raises:
        OptionError: as :func:`checked` says.
        ShapeError: as :func:`checked` says.
    """
    kind: Any = type(settings)
    hints = {} if torch.compiler.is_compiling() else _field_hints(kind)
    for name, hint in hints.items():
        value = getattr(settings, name)
        if hint is not Any and not _fits(hint, value):
            _refuse(kind.__name__, name, hint, value)


@functools.lru_cache(maxsize=256)
def _field_hints(kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in (each for each in fields(kind) if each.init):
        owner = next(
            base for base in kind.__mro__ if field.name in vars(base).get("__annotations__", ())
        )
        names = vars(sys.modules[owner.__module__])
        found[field.name] = _resolved(field.type, names)
    return found


def _positional(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that may come without their names."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    plain: Any = inspect.unwrap(function)
    given = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
    annotations, scope = plain.__annotations__, plain.__globals__
    return {p.name: _resolved(annotations.get(p.name, Any), scope) for p in given}


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)
    except NameError:  # imported for type checking alone
        return Any


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is what an annotation says."""
    if hint is Any or isinstance(hint, (TypeVar, str)):
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is bool:
        return True
    if hint is int:
        return _is_whole(value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if hint is Tensor:
        return isinstance(value, Tensor) and not value.is_complex()
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, limits = arguments[0], arguments[1]
        if limits is LATER:
            return True
        return _fits(kind, value) and (not isinstance(limits, Range) or limits.holds(value))
    if origin in (Union, types.UnionType):
        return any(_fits(each, value) for each in arguments)
    if hasattr(hint, "dim_str"):  # jaxtyping's
        return _fits(Tensor, value) and _has_dtype(hint, value) and _has_axes(hint, value)
    if origin is type:
        return isinstance(value, type)
    if origin in (Callable, type(Callable)) or hint is Callable:
        return callable(value)
    if origin is tuple:
        return _fits_tuple(arguments, value)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if isinstance(value, type) and _is_protocol(kind):
        return False  # a class has the methods, but stands for its objects
    try:
        if not isinstance(value, kind):
            return False
    except TypeError:  # a protocol that cannot be asked
        return True
    return _fits_elements(kind, arguments, value)


def _fits_tuple(arguments: tuple[Any, ...], value: Any) -> bool:
    if not isinstance(value, tuple):
        return False
    if len(arguments) == 2 and arguments[1] is ...:
        return all(_fits(arguments[0], each) for each in value)
    return len(value) == len(arguments) and all(map(_fits, arguments, value))


def _fits_elements(kind: type, arguments: tuple[Any, ...], value: Any) -> bool:
    if not arguments or not issubclass(kind, Iterable) or {*arguments} == {Any}:
        return not (arguments and isinstance(value, str))  # a text is no list of names
    if issubclass(kind, Mapping):
        return all(_fits(arguments[0], k) and _fits(arguments[1], v) for k, v in value.items())
    if isinstance(value, (str, bytes, Tensor)):
        return False
    if isinstance(value, Collection):  # others are looked at where they are iterated
        return all(_fits(arguments[0], each) for each in value)
    return True


def _is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


def _is_whole(value: Any) -> bool:
    # numpy's and torch's integers count as integers; True does not.
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _has_dtype(hint: Any, value: Tensor) -> bool:
    known = getattr(hint, "dtypes", None)
    return not isinstance(known, (list, tuple)) or str(value.dtype).split(".")[1] in known


def _has_axes(hint: Any, value: Tensor) -> bool:
    axes = hint.dim_str.split()
    least = sum(not _is_open(axis) for axis in axes)
    return value.ndim >= least if any(map(_is_open, axes)) else value.ndim == least


def _is_open(axis: str) -> bool:
    return axis == "..." or axis.startswith("*")


def _where(function: Callable[..., Any], args: Sequence[Any]) -> str:
    name = function.__name__
    if not args:  # with its class, if it is a static method
        return function.__qualname__.rpartition("<locals>.")[2]
    owner = args[0].__name__ if isinstance(args[0], type) else type(args[0]).__name__
    return owner if name == "__init__" else f"{owner}.{name}"


def _refuse(where: str, name: str, hint: Any, value: Any) -> None:
    parts = [hint] if get_origin(hint) not in (Union, types.UnionType) else get_args(hint)
    if isinstance(value, Tensor) and not value.is_complex():
        for part in parts:
            if hasattr(part, "dim_str") and _has_dtype(part, value):
                raise ShapeError(
                    f"{where}: {name} must have the shape ({', '.join(part.dim_str.split())}), got "
                    f"{tuple(value.shape)}."
                )
    words = dict.fromkeys(_in_words(part) for part in parts if part is not types.NoneType)
    plain = {str, int, float} & {*parts} or any(get_origin(part) is Annotated for part in parts)
    raise OptionError(
        f"{where}: {name} must be {' or '.join(words)}, got {_came(value, bool(plain))}."
    )


def _in_words(hint: Any) -> str:
    """What an annotation expects."""
    words: dict[Any, str] = {
        int: "an integer",
        float: "a number",
        str: "a text",
        bool: "True or False",
        None: "None",
        types.NoneType: "None",
        Tensor: "a tensor of real numbers",
        torch.device: "a device",
        Callable: "a function",
    }
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return (
            str(arguments[1].words) if isinstance(arguments[1], Range) else _in_words(arguments[0])
        )
    if hasattr(hint, "dim_str"):
        kind = {"Float": "floating point numbers", "Int": "integers"}.get(
            hint.dtype.__name__, "numbers"
        )
        return f"a tensor of {kind}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    kind = origin or hint
    if kind in words:
        return words[kind]
    if kind in (Callable, type(Callable)):
        return "a function"
    name = getattr(kind, "__name__", str(kind))
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if arguments and isinstance(kind, type) and issubclass(kind, Mapping):
        return f"a dictionary of {_in_words(arguments[1])}"
    if arguments and isinstance(kind, type) and issubclass(kind, Iterable):
        return f"a sequence, each {_in_words(arguments[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member) for member in kind)}"
    article = "an" if name[:1] in "AEIOU" else "a"
    example = f", such as {_EXAMPLES[name]}," if name in _EXAMPLES else ""
    return f"{article} {name}{example}".removesuffix(",")


def _came(value: Any, plain: bool) -> str:
    """What came: a value where plain values are expected, else its class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a tensor of {dtype} with shape {tuple(value.shape)}"
    shown = repr(value)
    short = plain or isinstance(value, (list, tuple, dict))
    return shown if short and len(shown) < 60 else type(value).__name__


def check_count(where: str, name: str, value: Any, least: int = 1) -> None:
    """Refuse what is not an integer of at least ``least``.

    Args:
        where: the function or class that was called.
        name: the option.
        value: what was given.
        least: the smallest value that makes sense.

    Raises:
        OptionError: naming the option, what was expected and what came.
    """
    if not _is_whole(value) or value < least:
        raise OptionError(f"{where}: {name} must be at least {least}, an integer, got {value!r}.")


def check_positive(where: str, name: str, value: Any) -> None:
    """Refuse what is not a finite number above 0.

    Args:
        where: the function or class that was called.
        name: the option.
        value: what was given.

    Raises:
        OptionError: naming the option, what was expected and what came.
    """
    if not _fits(Positive, value):
        raise OptionError(f"{where}: {name} must be a finite number above 0, got {value!r}.")


def check_instance(where: str, name: str, value: Any, kind: type, example: str) -> None:
    """Refuse what is not an object of a class, the class itself in particular.

    Args:
        where: the function or class that was called.
        name: the argument.
        value: what was given.
        kind: the class.
        example: how such an object is made, for the message.

    Raises:
        OptionError: naming the argument, what was expected and what came.
    """
    if isinstance(value, kind):
        return
    came = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    raise OptionError(f"{where}: {name} must be a {kind.__name__}, such as {example}, got {came}.")
