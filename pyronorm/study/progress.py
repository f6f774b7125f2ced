"""How far a run is: a bar on a terminal, elsewhere a line per finished job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyronorm.files import visible
from pyronorm.study.study import Job

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Console

__all__ = ["Progress", "shown"]


class Progress(ABC):
    """What is told of jobs as they begin and end."""

    @abstractmethod
    def begin(self, job: Job) -> None:
        """A job begins."""

    @abstractmethod
    def end(self, job: Job, failure: str | None, seconds: float) -> None:
        """A job has ended, after so many seconds, with what it failed with if it did."""


class _Nothing(Progress):
    def begin(self, job: Job) -> None:
        pass

    def end(self, job: Job, failure: str | None, seconds: float) -> None:
        pass


class _Bar(Progress):
    def __init__(self, bar: progress.Progress, total: int, done: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total, completed=done)

    def begin(self, job: Job) -> None:
        self._bar.update(self._task, description=visible(job))

    def end(self, job: Job, failure: str | None, seconds: float) -> None:
        self._bar.update(self._task, description=visible(job), advance=1)


class _Lines(Progress):
    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console, self._total, self._done = console, total, done
        if done:
            self._say(f"{done} of {total} jobs are finished already")

    def begin(self, job: Job) -> None:
        pass

    def end(self, job: Job, failure: str | None, seconds: float) -> None:
        self._done += 1
        found = f"{seconds:.1f} s" if failure is None else f"failed: {failure}"
        self._say(f"{self._done}/{self._total}  {job}: {found}")

    def _say(self, text: str) -> None:
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()  # a pipe keeps lines back


@contextmanager
def shown(show: bool, total: int, done: int) -> Iterator[Progress]:
    """What tells of jobs, on standard output.

    Args:
        show: whether to tell anything.
        total: number of all jobs.
        done: number of those that are finished already.
    """
    from rich.console import Console

    console = Console()
    if not show:
        yield _Nothing()
    elif console.is_terminal or console.is_jupyter:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<36}", markup=False),  # brackets in names are brackets
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=console) as bar:
            view = _Bar(bar, total, done)
            yield view
            bar.update(view._task, description="done")
    else:
        yield _Lines(console, total, done)
