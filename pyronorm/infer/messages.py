"""Refusals from inside a Pyro trace, as they were made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pyronorm.errors import DataError, PyronormError

__all__ = ["plain_messages", "refuse_non_finite"]

_TABLE = re.compile(r"\s*\n\s*Trace Shapes:.*", re.DOTALL)


@contextmanager
def plain_messages() -> Iterator[None]:
    """Context in which refusals come without the table of shapes that Pyro puts behind them."""
    try:
        yield
    except PyronormError as error:
        plain = _TABLE.sub("", str(error))
        if plain == str(error):
            raise
        raise type(error)(plain).with_traceback(error.__traceback__) from None


def refuse_non_finite(where: str, module: nn.Module) -> None:
    """Name the first parameter whose values are not finite, where something else is not.

    Args:
        where: the function that was called.
        module: a network, or what holds one.

    Raises:
        DataError: if there is such a parameter.
    """
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DataError(
                f"{where}: the parameter {name} has values that are not finite. Either it came so, or "
                "training diverged: lower the learning rate, or set gradient_clip_norm."
            )
