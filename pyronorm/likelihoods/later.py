"""Checks of values, at once or later: at once they wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

__all__ = ["checked_later", "require"]

_LATER: ContextVar[list[Tensor] | None] = ContextVar("_LATER", default=None)


@contextmanager
def checked_later() -> Iterator[list[Tensor]]:
    """Context that collects in a list whether values are good, for who looks at it later."""
    found: list[Tensor] = []
    token = _LATER.set(found)
    try:
        yield found
    finally:
        _LATER.reset(token)


def require(good: Tensor, error: Callable[[], Exception]) -> None:
    """Raise an error unless values are good; within :func:`checked_later` nothing is raised.

    Args:
        good: True or False, a tensor without axes.
        error: makes the error.
    """
    later = _LATER.get()
    if later is not None:
        later.append(good)
    elif not bool(good):
        raise error()
