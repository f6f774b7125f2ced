"""Run the jobs of a study: one after the other, or several at once."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyro
import torch

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
    keys = {job.key for job in jobs}
    if not jobs or len(keys) < len(jobs):
        raise OptionError(
            f"run_study: {study.name} has {len(jobs)} jobs, {len(keys)} names of them."
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
        with pyro.get_param_store().scope(), torch.random.fork_rng():
            pyro.set_rng_seed(job.seed)
            outcome = study.run(job, place)
        folder.write(job, outcome, time.perf_counter() - start)
    except Exception:
        folder.fail(job, traceback.format_exc())


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
    gpus = torch.cuda.device_count() if place.device in ("auto", "cuda") else 0
    waiting = list(todo)
    running: dict[int, tuple[Job, BaseProcess]] = {}
    try:
        while waiting or running:
            for slot in range(processes):
                if slot not in running and waiting:
                    job = waiting.pop(0)
                    gpu = slot % gpus if gpus else None
                    task = (study, job, place, folder.path, threads, gpu)
                    process: BaseProcess = context.Process(target=_work, args=task)
                    process.start()
                    running[slot] = (job, process)
                    report(str(job), 0)
            multiprocessing.connection.wait([p.sentinel for _, p in running.values()])
            for slot, (job, process) in list(running.items()):
                if not process.is_alive():
                    process.join()
                    if process.exitcode != 0:
                        folder.fail(job, f"the process ended with status {process.exitcode}")
                    del running[slot]
                    report(str(job), 1)
    finally:
        for _, process in running.values():
            process.terminate()


def _work(study: Study, job: Job, place: Place, path: Path, threads: int, gpu: int | None) -> None:
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)  # before CUDA starts in this process
    _run(study, job, place, Folder(path))


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
        TextColumn("{task.description:<36}"),
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
