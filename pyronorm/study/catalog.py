"""The studies by name, each in two sizes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from pyronorm.errors import DataError, OptionError
from pyronorm.study.comparison import Comparison
from pyronorm.study.settings import Settings
from pyronorm.study.study import Study

__all__ = ["STUDIES", "Entry", "make_study", "restore_study"]


@dataclass(frozen=True)
class Entry:
    """A study of the catalog.

    Attributes:
        make: makes it from its name and settings.
        quick: settings for a laptop.
        full: settings of the published experiment, for a GPU.
        description: one line.
    """

    make: Callable[[str, Any], Study]
    quick: Any
    full: Any
    description: str


STUDIES: Mapping[str, Entry] = {
    "digits": Entry(
        Comparison,
        Settings(),
        Settings(methods=("all",), seeds=tuple(range(10))),
        "normalizers and posteriors on scikit-learn's digits",
    ),
}
"""Studies that ``pyronorm study`` knows, by name."""


def make_study(name: str, *, quick: bool = False, **changes: object) -> Study:
    """A study of :data:`STUDIES`.

    Args:
        name: its name.
        quick: the size for a laptop instead of the full one.
        changes: settings that differ from the size's; None leaves one as it is.

    Raises:
        OptionError: for an unknown name or setting; the message lists the choices.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"no study {name!r}.{hint} Choose from {', '.join(STUDIES)}.")
    entry = STUDIES[name]
    settings = entry.quick if quick else entry.full
    known = [f.name for f in fields(settings)]
    given = {key: value for key, value in changes.items() if value is not None}
    for key in given:
        if key not in known:
            raise OptionError(f"{name} has no setting {key!r}; it has {', '.join(known)}.")
    return entry.make(name, replace(settings, **given))


def restore_study(record: Mapping[str, Any]) -> Study:
    """The study that a folder's ``study.json`` is of.

    Raises:
        OptionError: if this version does not know the study.
        DataError: if it has other settings in this version.
    """
    name = str(record.get("study"))
    if name not in STUDIES:
        raise OptionError(f"no study {name!r}; there are {', '.join(STUDIES)}.")
    entry = STUDIES[name]
    other = f"the settings of {name} in study.json are not those of this version"
    try:
        study = entry.make(name, _restored(type(entry.full), record["settings"]))
    except TypeError as error:
        raise DataError(f"{other}: {error}.") from None
    if study.fingerprint() != record.get("fingerprint"):  # some are missing, or have new meanings
        raise DataError(
            f"{other}: they make configuration {study.fingerprint()} here, and it was "
            f"{record.get('fingerprint')}."
        )
    return study


def _restored(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON: lists become tuples, objects the dataclasses of their fields."""
    hints = get_type_hints(kind)
    found = {}
    for key, value in values.items():
        hint = hints.get(key)
        inner = [
            part for part in (hint, *get_args(hint)) if is_dataclass(part)
        ]  # or None beside it
        if inner and isinstance(value, Mapping):
            found[key] = _restored(inner[0], value)  # type: ignore[arg-type]
        else:
            found[key] = _value(value)
    return kind(**found)


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_value, value))
    return float(value) if value in ("inf", "-inf") else value  # as folders write infinity
