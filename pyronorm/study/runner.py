"""Run the jobs of a study: one after the other, or several at once."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

from pyronorm.errors import OptionError
from pyronorm.study.folder import Folder
from pyronorm.study.study import Job, Place, Results, Study

__all__ = ["run_study"]


def run_study(
    study: Study,
    path: Path,
    *,
    place: Place | None = None,
    processes: int = 1,
    command: str = "",
    force: bool = False,
    progress: bool = True,
) -> Results:
    """Run what is not finished yet, and keep each job's results as they come.

    A job that fails is noted and the others go on. After an interruption, however hard, the same call
    goes on where it stopped; a folder with results of another configuration is refused.

    Args:
        study: what to run.
        path: folder of the results.
        place: data root and device; None for the defaults.
        processes: jobs at once, each in a process of its own with its share of the cores. With several
            GPUs and device ``"cuda"`` they take turns.
        command: what the report names as the command.
        force: remove the results of earlier runs and begin anew.
        progress: show a progress bar with the time left.

    Returns:
        The results of all finished jobs, of earlier runs too.

    Raises:
        OptionError: if ``processes`` is below 1, or the folder belongs to another configuration.
    """
    if processes < 1:
        raise OptionError(f"run_study: processes must be at least 1, got {processes}.")
    place = Place() if place is None else place
    jobs = list(study.jobs())
    if not jobs:
        raise OptionError(f"run_study: {study.name} has no jobs.")
    keys = Counter(job.key for job in jobs)
    twice = [str(job) for job in jobs if keys[job.key] > 1]
    if twice:
        raise OptionError(
            f"run_study: {study.name} has several jobs whose files have the same name: "
            f"{'; '.join(twice)}. Names have to differ in letters, digits, '.' or '='."
        )
    folder = Folder(path)
    folder.start(study, command, force)
    todo = [job for job in jobs if not folder.finished(job)]
    with _bar(progress, len(jobs), len(jobs) - len(todo)) as report:
        if processes == 1:
            for job in todo:
                report(str(job), 0)
                _run(study, job, place, folder)
                report(str(job), 1)
        else:
            _run_processes(study, todo, place, folder, processes, report)
    return folder.results(study)


def _run(study: Study, job: Job, place: Place, folder: Folder) -> None:
    """Run one job; an error is noted and goes no further."""
    start = time.perf_counter()
    try:
        with pyro.get_param_store().scope(), _seeded(job.seed):
            outcome = study.run(job, place)
        folder.write(job, outcome, time.perf_counter() - start)
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        folder.fail(job, f"{type(error).__name__}: {text}", traceback.format_exc())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch; afterwards they go on as if nothing had been."""
    state = get_rng_state()  # of the three, CUDA's not included
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            pyro.set_rng_seed(seed)
            yield
    finally:
        set_rng_state(state)


def _run_processes(
    study: Study,
    todo: Sequence[Job],
    place: Place,
    folder: Folder,
    processes: int,
    report: Callable[[str, int], None],
) -> None:
    """Keep so many processes busy; one that dies without a word has failed too."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    gpus = _gpus() if place.device in ("auto", "cuda") else []
    waiting = list(todo)
    running: dict[int, tuple[Job, BaseProcess]] = {}
    try:
        while waiting or running:
            for slot in range(processes):
                if slot not in running and waiting:
                    job = waiting.pop(0)
                    gpu = gpus[slot % len(gpus)] if gpus else None
                    task = (study, job, place, folder.path, threads, gpu)
                    process: BaseProcess = context.Process(target=_work, args=task)
                    process.start()
                    running[slot] = (job, process)
                    report(str(job), 0)
            multiprocessing.connection.wait([p.sentinel for _, p in running.values()])
            for slot, (job, process) in list(running.items()):
                if not process.is_alive():
                    process.join()
                    if not folder.finished(job) and (process.exitcode or not folder.failed(job)):
                        folder.fail(job, f"the process ended with status {process.exitcode}")
                    del running[slot]
                    report(str(job), 1)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in names][: torch.cuda.device_count()]


def _work(study: Study, job: Job, place: Place, path: Path, threads: int, gpu: str | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA starts in this process
    _run(study, job, place, Folder(path))


def _end_with_parent() -> None:
    """Without it a killed study's jobs would run on, beside those of the study started again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _bar(show: bool, total: int, done: int) -> Iterator[Callable[[str, int], None]]:
    """A function that shows the job at work, and moves the bar by so many finished ones."""
    if not show:
        yield lambda job, finished: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<36}", markup=False),  # brackets in names are brackets
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task("", total=total, completed=done)

        def report(job: str, finished: int) -> None:
            bar.update(task, description=job, advance=finished)

        yield report
        bar.update(task, description="done")
