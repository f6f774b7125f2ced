"""Run the part of a network before its first latent layer only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyronorm.layers import LatentNorm

__all__ = ["Prefix"]


class Prefix:
    """The results of all torch functions called before the first latent layer.

    They depend on the input and not on the latents, so evaluating the network for many draws needs
    them once. :meth:`record` runs around the first evaluation and keeps them; :meth:`replay` runs
    around the others and hands them out in the same order, up to the first latent layer. Between
    them the network's own Python code runs as ever, so skip connections and branches keep working.

    Nothing is replayed where that could be wrong: if the prefix draws random numbers, or if a
    recorded tensor was changed in place afterwards.

    Args:
        layers: the latent layers of the network.
    """

    def __init__(self, layers: Sequence[LatentNorm]) -> None:
        self._layers = layers
        self._calls: list[tuple[Any, Any]] = []  # function and result
        self._versions: list[int | None] = []
        self._usable = True
        self.largest_activation = 0
        """Elements of the largest output of a latent layer in the recorded evaluation."""

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the results of this evaluation up to the first latent layer."""
        tape = _Tape(self._calls, replaying=False)
        state = _random_state()
        self._usable = False

        def first(layer: Any, args: Any) -> None:
            if tape.running:
                tape.running = False
                self._usable = torch.equal(state, _random_state())
                self._versions = [_version(result) for _, result in self._calls]

        def size(layer: Any, args: Any, output: Tensor) -> None:
            self.largest_activation = max(self.largest_activation, output.numel())

        handles = [layer.register_forward_pre_hook(first) for layer in self._layers]
        handles += [layer.register_forward_hook(size) for layer in self._layers]
        try:
            with tape:
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Hand out the recorded results up to the first latent layer."""
        if not self._usable or self._versions != [_version(result) for _, result in self._calls]:
            yield
            return
        tape = _Tape(self._calls, replaying=True)

        def first(layer: Any, args: Any) -> None:
            tape.running = False

        handles = [layer.register_forward_pre_hook(first) for layer in self._layers]
        try:
            with tape:
                yield
        finally:
            for handle in handles:
                handle.remove()


class _Tape(TorchFunctionMode):
    def __init__(self, calls: list[tuple[Any, Any]], replaying: bool) -> None:
        super().__init__()
        self.calls = calls
        self.replaying = replaying
        self.running = True
        self.position = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not self.running or (self.replaying and not self.calls):
            return func(*args, **(kwargs or {}))
        if not self.replaying:
            result = func(*args, **(kwargs or {}))
            self.calls.append((func, result))
            return result
        recorded, result = self.calls[min(self.position, len(self.calls) - 1)]
        if recorded != func or self.position >= len(self.calls):
            self.running = False  # not the course it took before: go on without the recording
            return func(*args, **(kwargs or {}))
        self.position += 1
        return result


def _version(value: Any) -> int | None:
    if not isinstance(value, Tensor) or value.is_inference():
        return None
    return value._version


def _random_state() -> Tensor:
    state = torch.get_rng_state()
    if torch.cuda.is_initialized():
        state = torch.cat([state, torch.cuda.get_rng_state()])
    return state
