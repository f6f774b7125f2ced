"""Bars of functions that take long: one style, one at a time, on a terminal or in a notebook.

A bar appears after a second, so that what is quick shows none, and vanishes at the end but for that of
training. Where the output is no terminal (a file, a pipe, a job of a study) there is nothing at all.
Within a function that has a bar others have none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Bar", "progress_bar", "silence"]

_DELAY = 1.0
_TURN = threading.Lock()  # a terminal has one bar at a time


class Bar:
    """How far a function is.

    Args:
        what: what it does, in a word or two.
        total: steps in all; None if that is not known.
        lasting: begin at once, and stay when it is done.
        shown: whether there is a bar, on a terminal or in a notebook.
    """

    def __init__(self, what: str, total: float | None, lasting: bool, shown: bool) -> None:
        self.what, self.total, self.done = what, total, 0.0
        self._lasting, self._shown = lasting, shown
        self._rich: Any = None
        self._began = time.monotonic()

    def advance(self, what: str | None = None, *, to: float | None = None) -> None:
        """Take a step.

        Args:
            what: what it does now.
            to: how many steps are done; None for one more.
        """
        self.done = self.done + 1 if to is None else to
        self.what = self.what if what is None else what
        if not self._shown:
            return
        if self._rich is None:
            if not self._lasting and time.monotonic() - self._began < _DELAY:
                return
            console = _console()
            self._shown = bool(console.is_terminal or console.is_jupyter)
            if not self._shown:
                return
            self._begin(console)
        task = self._rich.task_ids[0]
        self._rich.update(task, completed=self.done, description=self.what)

    def _begin(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
        self._rich = Progress(*columns, console=console, transient=not self._lasting)
        self._rich.start()
        self._rich.add_task(self.what, total=self.total)

    def _end(self) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None


@contextmanager
def progress_bar(
    what: str, total: float | None = None, *, show: bool = True, lasting: bool = False
) -> Iterator[Bar]:
    """A bar for the time of the block.

    Args:
        what: what is done, in a word or two: ``"predict"``.
        total: steps in all; None if that is not known.
        show: whether there is one: the caller's ``progress=``.
        lasting: begin at once, and stay when it is done.
    """
    mine = _TURN.acquire(blocking=False)  # none within another
    bar = Bar(what, total, lasting, show and mine)
    try:
        yield bar
    finally:
        bar._end()
        if mine:
            _TURN.release()


@contextmanager
def silence() -> Iterator[None]:
    """Context without bars, for what shows something of its own."""
    mine = _TURN.acquire(blocking=False)
    try:
        yield
    finally:
        if mine:
            _TURN.release()


def _console() -> Any:
    from rich.console import Console

    return Console()
