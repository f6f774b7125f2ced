"""Run the jobs of a study: one after the other, or several at once."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

from pyronorm.checks import Count, check_count, checked
from pyronorm.errors import FileError, OptionError, ProcessError
from pyronorm.files import StrPath
from pyronorm.progress import silence
from pyronorm.study.cluster import TRIES, connected, refuse_without_dask
from pyronorm.study.folder import Folder
from pyronorm.study.progress import Progress, shown
from pyronorm.study.study import Job, Place, Results, Study

__all__ = ["run_study"]


@checked
def run_study(
    study: Study,
    path: StrPath,
    *,
    place: Place | None = None,
    processes: Count = 1,
    scheduler: str | None = None,
    threads: int = 1,
    command: str = "",
    force: bool = False,
    progress: bool = True,
) -> Results:
    """Run what is not finished yet, and keep each job's results as they come.

    A job that fails is noted and the others go on. After an interruption, however hard, the same call
    goes on where it stopped; jobs whose files are damaged or missing are run anew. A folder with
    results of another configuration is refused, and one that another run works in.

    Args:
        study: what to run.
        path: folder of the results.
        place: data root and device; None for the defaults.
        processes: jobs at once, in so many processes of Dask on this machine (the extra
            ``pyronorm[distributed]``). With several GPUs and device ``"cuda"`` they take turns. A job
            whose process is ended is run again, up to twice.
        scheduler: the address of a Dask scheduler, whose workers run the jobs instead, also on other
            machines that see the same folders. Each worker runs one job at a time. Dask draws from
            Python's own generator beside: a job's seed decides what torch and NumPy draw there.
        threads: threads of each job. Operations of small networks wait for threads longer than they
            compute, more so where other processes are at work; large ones on an idle machine gain.
        command: what the report names as the command.
        force: remove the results of earlier runs and begin anew.
        progress: show a progress bar with the time left; where there is no terminal, a line per
            finished job.

    Returns:
        The results of all finished jobs, of earlier runs too.

    Raises:
        OptionError: if ``processes`` or ``threads`` is below 1, the folder belongs to another
            configuration or another run, Dask is needed and not installed, or no scheduler answers.
        ProcessError: if the scheduler is gone. What is finished is kept.
        FileError: if results cannot be written. What is finished is kept.
    """
    check_count("run_study", "processes", processes)
    check_count("run_study", "threads", threads)
    if scheduler is not None and processes > 1:
        raise OptionError(
            f"run_study: processes={processes} are of this machine, scheduler={scheduler!r} has workers "
            "of its own: give one of the two."
        )
    distributed = processes > 1 or scheduler is not None
    if distributed:
        refuse_without_dask()
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
    with folder.run(study, command, force):
        todo = [job for job in jobs if not folder.finished(study, job)]
        try:
            with shown(progress, len(jobs), len(jobs) - len(todo)) as view:
                if not distributed:
                    with _threads(threads):
                        for job in todo:
                            view.begin(job)
                            seconds = _run(study, job, place, folder)
                            view.end(job, folder.failure(job), seconds)
                elif todo:
                    with connected(processes, scheduler) as client:
                        gpus = _gpus(place) if scheduler is None else []
                        work = _Work(study, place, folder.path.absolute(), threads, gpus)
                        _run_distributed(client, work.at_any_place(), todo, folder, view)
        except FileError as error:
            done = sum(folder.finished(study, job) for job in jobs)
            raise FileError(
                f"{error} {done} of {len(jobs)} jobs are finished and kept: once that is mended, run "
                "the study again to go on."
            ) from error
        return folder.results(study)


def _run(study: Study, job: Job, place: Place, folder: Folder) -> float:
    """Run one job, in how many seconds; an error is noted and goes no further, but for a full disk."""
    start = time.perf_counter()
    ran = False
    try:
        with pyro.get_param_store().scope(), _seeded(job.seed), silence():
            outcome = study.run(job, place)
        ran = True
        folder.write(study, job, outcome, time.perf_counter() - start)
    except (Exception, SystemExit) as error:
        if ran and isinstance(error, FileError):
            raise
        text = str(error).strip().partition("\n")[0]
        folder.fail(job, f"{type(error).__name__}: {text}", traceback.format_exc())
    return time.perf_counter() - start


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


@dataclass(frozen=True)
class _Work:
    """What a worker does with a job."""

    study: Study
    place: Place
    path: Path
    threads: int
    gpus: Sequence[str]

    def at_any_place(self) -> _Work:
        """The same for a process that works in another folder."""
        root = self.place.data_root
        if root is None:
            return self
        return replace(self, place=replace(self.place, data_root=Path(root).absolute()))

    def __call__(self, job: Job) -> None:
        """Run it, unless that is done; one after the other where a worker has several threads."""
        folder = Folder(self.path)
        with _ALONE, _threads(self.threads):
            if folder.finished(self.study, job):  # by a worker that was lost right after
                return
            if self.gpus:
                from distributed import get_worker

                # Before CUDA starts in this process, whose number never changes.
                name: Any = get_worker().name
                os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(name) % len(self.gpus)]
            _run(self.study, job, self.place, folder)


_ALONE = threading.Lock()
"""A job has the generators of its process for itself."""

_KILLED = f"the processes that were to run it ended, {TRIES} times"


def _run_distributed(
    client: Any, work: _Work, todo: Sequence[Job], folder: Folder, view: Progress
) -> None:
    """Have all jobs run; one that brings its processes down has failed too."""
    import distributed

    dask: Any = distributed  # without types

    # Outcomes are in files. What a worker returns would be lost with it, and the job run anew.
    jobs = {client.submit(work, job, pure=False): job for job in todo}
    try:
        for future in dask.as_completed(list(jobs), loop=client.loop):
            job = jobs.pop(future)
            view.begin(job)
            error = None if future.status == "finished" else _error(future)
            if isinstance(error, FileError):
                raise error
            if error is not None and not folder.finished(work.study, job):
                text = str(error).strip().partition("\n")[0]
                killed = isinstance(error, dask.KilledWorker)
                folder.fail(job, _KILLED if killed else f"{type(error).__name__}: {text}")
            view.end(job, folder.failure(job), folder.seconds(job))
            future.release()
    finally:
        client.cancel(list(jobs))


def _error(future: Any) -> BaseException:
    if future.status != "error":
        raise ProcessError(
            "run_study: Dask's scheduler is gone. What is finished is kept: run the study again to go "
            "on."
        )
    error: BaseException = future.exception()
    return error


def _gpus(place: Place) -> list[str]:
    """The GPUs that jobs take turns with, by the names that CUDA_VISIBLE_DEVICES has for them."""
    if place.device not in ("auto", "cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in names][: torch.cuda.device_count()]
