"""Hand latents over to layers for the time of one call."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, no_type_check

from torch import Tensor, nn

__all__ = ["HANDED", "Handed", "handed_over"]

_Pairs = Mapping[nn.Module, tuple[Tensor, Tensor]]


@no_type_check  # torch.compile cannot see through run-time type checks here
class handed_over:  # noqa: N801
    """Context in which layers have latents, in this thread; the only place that gives them any.

    Contexts nest: layers that the inner one says nothing of keep what the outer one gave them.

    Args:
        latents: shift and scale of some layers.
        shared: for some layers what their normalizers computed once for all draws.
        sizes: gets the number of elements of each layer's output.
    """

    def __init__(
        self,
        latents: _Pairs,
        shared: Mapping[nn.Module, Any] | None = None,
        sizes: list[int] | None = None,
    ) -> None:
        self.latents, self.shared, self.sizes = latents, shared or {}, sizes

    def __enter__(self) -> None:
        self._before = before = HANDED.now
        if before is not None:
            self.latents = {**before.latents, **self.latents}
            self.shared = {**before.shared, **self.shared}
            self.sizes = before.sizes if self.sizes is None else self.sizes
        HANDED.now = self

    def __exit__(self, *error: object) -> None:
        HANDED.now = self._before


class Handed(threading.local):
    """What is handed over now, in this thread: layers are shared by all threads.

    torch.compile reads and writes such variables, while it cannot follow those of ``contextvars``.
    """

    now: handed_over | None = None


HANDED = Handed()
