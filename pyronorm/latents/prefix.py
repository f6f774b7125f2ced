"""Run the part of a network before its first latent layer only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from pyronorm.normalizers import LatentNorm

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
        self._first: LatentNorm | None = None
        self.largest_activation = 0
        """Elements of the largest output of a latent layer in the recorded evaluation."""

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the results of this evaluation up to the first latent layer."""
        tape = _Tape(self._calls, replaying=False)
        state = _random_state()

        def begin(layer: Any, args: Any) -> None:
            if tape.stop() and torch.equal(state, _random_state()):
                self._first = layer
                self._versions = self._present_versions()

        def end(layer: Any, args: Any, output: Tensor) -> None:
            self.largest_activation = max(self.largest_activation, output.numel())

        handles = [layer.register_forward_pre_hook(begin) for layer in self._layers]
        handles += [layer.register_forward_hook(end) for layer in self._layers]
        try:
            with tape.running():
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Hand out the recorded results up to the first latent layer."""
        if self._first is None or self._versions != self._present_versions():
            yield
            return
        tape = _Tape(self._calls, replaying=True)

        def begin(layer: Any, args: Any) -> None:
            tape.stop()

        handle = self._first.register_forward_pre_hook(begin)
        try:
            with tape.running():
                yield
        finally:
            handle.remove()

    def _present_versions(self) -> list[int | None]:
        return [_version(result) for _, result in self._calls]


class _Tape(TorchFunctionMode):
    """Sees every torch function until it is stopped; then it is out of the way."""

    def __init__(self, calls: list[tuple[Any, Any]], replaying: bool) -> None:
        super().__init__()
        self._calls = calls
        self._replaying = replaying
        self._active = False  # whether there is still something to see
        self._entered = False  # whether torch still asks us
        self._position = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be active in this context, or until stopped."""
        self._active = self._entered = True
        with ExitStack() as stack:
            self.__enter__()  # type: ignore[no-untyped-call]
            stack.callback(self._leave)
            yield

    def stop(self) -> bool:
        """End; tell whether it was active."""
        was_active, self._active = self._active, False
        # Another mode may have been entered since (a `with torch.device(...)` in the network): then
        # it has to go first, and this one stays until the end, inactive.
        if was_active and _get_current_function_mode() is self:
            self._leave()
        return was_active

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not self._active:
            return func(*args, **(kwargs or {}))
        if not self._replaying:
            result = func(*args, **(kwargs or {}))
            self._calls.append((func, result))
            return result
        if self._position < len(self._calls):
            recorded, result = self._calls[self._position]
            if recorded == func:
                self._position += 1
                return result
        self._active = False  # not the course it took before: go on without the recording
        return func(*args, **(kwargs or {}))


def _version(value: Any) -> int | None:
    if not isinstance(value, Tensor) or value.is_inference():
        return None
    return value._version


def _random_state() -> Tensor:
    state = torch.get_rng_state()
    if torch.cuda.is_initialized():
        state = torch.cat([state, torch.cuda.get_rng_state()])
    return state
