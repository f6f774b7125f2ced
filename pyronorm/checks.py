"""Checks of options, at the doors of the library."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

from pyronorm.errors import OptionError

__all__ = ["check_count", "check_instance", "check_positive"]


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
    # numpy's and torch's integers count as integers; True does not.
    try:
        whole = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        whole = False
    if not whole:
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
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
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
