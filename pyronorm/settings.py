"""Objects as JSON and tensors: the settings of normalizers, priors, likelihoods and guides."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

from torch import Tensor, nn

from pyronorm.archive import read_archive, write_archive
from pyronorm.errors import FileError, OptionError

__all__ = [
    "arguments_of",
    "class_named",
    "decode",
    "encode",
    "lasting_name",
    "load_value",
    "name_of",
    "save_value",
    "settings_in_words",
]

_Value = TypeVar("_Value")

_SHORT = 4  # values that are shown one by one
_PLAIN = (bool, int, float, str, type(None))


def name_of(kind: type) -> str:
    """The name of a class in a file, ``module:class``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def lasting_name(kind: type, where: str) -> str:
    """The same, of a class that another process can find by it.

    Args:
        kind: the class.
        where: for the message.

    Raises:
        OptionError: if it is defined inside of a function.
    """
    if "<locals>" in kind.__qualname__:
        raise OptionError(
            f"{where}: the class {kind.__name__} is defined inside of a function, so nobody who reads "
            "the file can find it. Define it at the top level of a module."
        )
    return name_of(kind)


def class_named(name: str, base: type, where: str) -> type:
    """The class of that name, if it is known and of the right kind.

    No module is imported for that: a file cannot make code run.

    Args:
        name: as :func:`name_of` gives it.
        base: what it has to be derived from.
        where: for messages.

    Raises:
        OptionError: if there is none.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, base):
        return found
    fix = (
        f"It was defined in the script that saved the file: import {path} into this script, or define "
        "it here."
        if module == "__main__"
        else f"Import the module {module} first."
    )
    raise OptionError(
        f"{where}: needs the class {path} of the module {module}, a {base.__name__}; there is none in "
        f"this process. {fix}"
    )


def encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """Give a value the form of JSON; tensors go into a table beside it.

    Args:
        value: numbers, strings, None, lists, tuples, dictionaries, enumerations, tensors, and
            dataclasses of these.
        tensors: the table, which grows.
        where: a name for what is encoded, for messages and the table.

    Raises:
        OptionError: for anything else.
    """
    if isinstance(value, Enum):
        return {"enum": lasting_name(type(value), f"save: {where}"), "value": value.value}
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"tensor": where}
    if isinstance(value, (list, tuple)):
        items = [encode(item, tensors, f"{where}.{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {k: encode(v, tensors, f"{where}.{k}") for k, v in value.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        encoded = {k: encode(v, tensors, f"{where}.{k}") for k, v in own.items()}
        return {"class": lasting_name(type(value), f"save: {where}"), "fields": encoded}
    raise OptionError(
        f"save: {where} is a {type(value).__name__}, which has no form in a file. Settings are numbers, "
        "strings, tensors, and frozen dataclasses of these."
    )


def decode(value: Any, tensors: Mapping[str, Tensor], where: str, base: type = object) -> Any:
    """The inverse of :func:`encode`.

    Args:
        value: from :func:`encode`.
        tensors: the table.
        where: for messages.
        base: what a dataclass at the top has to be derived from; those within are the library's own.

    Raises:
        OptionError: if a class is not known in this process.
    """
    if isinstance(value, list):
        return [decode(item, tensors, where) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(decode(item, tensors, where) for item in value["tuple"])
    if "dict" in value:
        return {k: decode(v, tensors, where) for k, v in value["dict"].items()}
    if "enum" in value:
        return _own(value["enum"], Enum, where)(value["value"])
    arguments = {k: decode(v, tensors, where) for k, v in value["fields"].items()}
    name = value["class"]
    kind = class_named(name, base, where) if base is not object else _own(name, object, where)
    if not is_dataclass(kind):
        raise OptionError(f"{where}: the file needs the dataclass {name}; it is none any more.")
    return kind(**arguments)


def save_value(path: str | os.PathLike[str], kind: str, value: Any) -> None:
    """Write a dataclass of settings and tensors to a file of its own.

    Args:
        path: the file.
        kind: what it is, as the reader asks for it.
        value: what :func:`encode` takes.

    Raises:
        FileError: if the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    write_archive(path, kind, {"value": encode(value, tensors, kind)}, tensors)


def load_value(path: str | os.PathLike[str], kind: str, expected: type[_Value]) -> _Value:
    """Read what :func:`save_value` wrote.

    Args:
        path: the file.
        kind: what it has to be.
        expected: its class.

    Raises:
        FileError: if the file is missing, damaged, of a later format, or holds something else.
    """
    content, tensors = read_archive(path, kind)
    value = decode(content["value"], tensors, os.fspath(path))
    if not isinstance(value, expected):
        raise FileError(
            f"{os.fspath(path)}: holds a {type(value).__name__}, expected {expected.__name__}."
        )
    return value


def arguments_of(value: Any, where: str) -> dict[str, Any]:
    """The arguments that made an object, read off attributes of the same names.

    Tensors without axes become numbers.

    Raises:
        OptionError: if it does not keep one of them.
    """
    found: dict[str, Any] = {}
    if type(value).__init__ in (object.__init__, nn.Module.__init__):
        return found
    for name, parameter in inspect.signature(type(value).__init__).parameters.items():
        if name == "self":
            continue
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or not hasattr(value, name):
            raise OptionError(
                f"{where}: {type(value).__name__} does not keep its argument {name!r}. Keep it as an "
                "attribute of that name."
            )
        own = getattr(value, name)
        found[name] = own.item() if isinstance(own, Tensor) and own.ndim == 0 else own
    return found


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """Settings as in a call, ``std=0.3, learned=True``; long ones by their size, absent ones not.

    Args:
        settings: by name.
    """
    there = {k: v for k, v in settings.items() if v is not None and v is not False}
    return ", ".join(f"{name}={_in_words(value)}" for name, value in there.items())


def _in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor) and value.numel() > _SHORT:
        return f"tensor of shape {tuple(value.shape)}"
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, (list, tuple)):
        parts = ", ".join(map(_in_words, value))
        return f"[{parts}]" if len(value) <= _SHORT else f"{len(value)} values"
    return getattr(value, "__name__", repr(value))


def _own(name: str, base: type, where: str) -> type:
    if not name.startswith("pyronorm."):
        raise OptionError(f"{where}: the file holds the class {name}, which is not of pyronorm.")
    return class_named(name, base, where)
