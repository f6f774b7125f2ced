"""Networks in evaluation mode for a time, in any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode", "kept_modes"]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in evaluation mode; each submodule gets its mode back after."""
    with _kept(module, _evaluate):
        yield


@contextmanager
def kept_modes(module: nn.Module) -> Iterator[None]:
    """Context after which every submodule has the mode (training or evaluation) it had before.

    Several threads may be in such a context at once: the last one that leaves it sets the mode that
    the first one found.
    """
    with _kept(module, lambda module: None):
        yield


@contextmanager
def _kept(module: nn.Module, begin: Callable[[nn.Module], None]) -> Iterator[None]:
    modules = list(module.modules())
    with _MODES:  # what the next context finds is what this one has set
        mine = [_Kept(m.training) for m in modules]
        for m, kept in zip(modules, mine, strict=True):
            _KEPT.setdefault(m, []).append(kept)
        try:
            begin(module)
        except BaseException:
            _end(modules, mine)
            raise
    try:
        yield
    finally:
        with _MODES:
            _end(modules, mine)


def _end(modules: list[nn.Module], mine: list[_Kept]) -> None:
    last = [(m, kept.training) for m, kept in zip(modules, mine, strict=True) if _leave(m, kept)]
    for m, training in last:  # a module before its parts, which may differ from it
        if m.training != training:
            if not _only_sets_a_flag(m):
                m.train(training)
            m.training = training


def _evaluate(module: nn.Module) -> None:
    training = [m for m in module.modules() if m.training]
    if all(map(_only_sets_a_flag, training)):  # faster than to set the flag of every module
        for m in training:
            m.training = False
    else:
        module.eval()


def _only_sets_a_flag(module: nn.Module) -> bool:
    """Whether a change of mode does no more than that: adapters merge weights."""
    return type(module).train is nn.Module.train and type(module).eval is nn.Module.eval


class _Kept:
    """The mode that one context has to set at its end."""

    def __init__(self, training: bool) -> None:
        self.training = training


_MODES = threading.RLock()
_KEPT: dict[nn.Module, list[_Kept]] = {}  # the contexts that a module is in, in order of entry


def _leave(module: nn.Module, mine: _Kept) -> bool:
    """Whether the context sets the mode; where another was entered after it, that one will do so."""
    contexts = _KEPT[module]
    position = contexts.index(mine)
    del contexts[position]
    if position < len(contexts):
        contexts[position].training = mine.training
        return False
    if not contexts:
        del _KEPT[module]
    return True
