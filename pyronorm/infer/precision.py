"""The precision that a network runs in where nothing is trained, in the words of Lightning Fabric."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from pyronorm.errors import OptionError

__all__ = ["running_in"]

_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_WORDS = "'32-true', 'bf16-mixed' or, on a GPU, '16-mixed'"


def running_in(
    where: str, precision: str | None, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """What makes a context in which a network runs in that precision.

    Args:
        where: the function that was asked, for messages.
        precision: ``"32-true"`` for the precision of the weights, ``"bf16-mixed"`` or ``"16-mixed"``;
            None leaves it to the caller's ``torch.autocast``.
        device: where the network is.

    Raises:
        OptionError: if there is no such precision, or not on that device.
    """
    if precision is None:
        return nullcontext
    kind = device.type
    if precision == "32-true":
        known = torch.amp.is_autocast_available(kind)
        return partial(torch.autocast, kind, enabled=False) if known else nullcontext
    if precision not in _MIXED:
        hint = ""
        if precision.endswith("-true"):
            hint = " That is a matter of the weights: convert the model, model.to(torch.bfloat16)."
        raise OptionError(f"{where}: precision must be {_WORDS}, got {precision!r}.{hint}")
    if precision == "16-mixed" and kind == "cpu":
        raise OptionError(
            f"{where}: precision='16-mixed' is for a GPU, and the network is on the CPU. Take "
            "'bf16-mixed'."
        )
    if not torch.amp.is_autocast_available(kind):
        raise OptionError(f"{where}: torch has no mixed precision on {device}. Take '32-true'.")
    return partial(torch.autocast, kind, _MIXED[precision])
