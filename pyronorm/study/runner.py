"""Run the jobs of a study: one after the other, or several at once."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

from pyronorm.checks import Count, check_count, checked
from pyronorm.errors import FileError, OptionError
from pyronorm.files import StrPath
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
        processes: jobs at once, each in a process of its own. With several GPUs and device ``"cuda"``
            they take turns.
        threads: threads of each job. Operations of small networks wait for threads longer than they
            compute, more so where other processes are at work; large ones on an idle machine gain.
        command: what the report names as the command.
        force: remove the results of earlier runs and begin anew.
        progress: show a progress bar with the time left; where there is no terminal, a line per
            finished job.

    Returns:
        The results of all finished jobs, of earlier runs too.

    Raises:
        OptionError: if ``processes`` or ``threads`` is below 1, or the folder belongs to another
            configuration or another run.
        FileError: if results cannot be written. What is finished is kept.
    """
    check_count("run_study", "processes", processes)
    check_count("run_study", "threads", threads)
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
                if processes == 1:
                    with _threads(threads):
                        for job in todo:
                            view.begin(job)
                            _run(study, job, place, folder)
                            view.end(job, folder.failure(job))
                else:
                    _run_processes(study, todo, place, folder, processes, threads, view)
        except FileError as error:
            done = sum(folder.finished(study, job) for job in jobs)
            raise FileError(
                f"{error} {done} of {len(jobs)} jobs are finished and kept: once that is mended, run "
                "the study again to go on."
            ) from error
        return folder.results(study)


def _run(study: Study, job: Job, place: Place, folder: Folder) -> None:
    """Run one job; an error is noted and goes no further, unless nothing can be written."""
    start = time.perf_counter()
    ran = False
    try:
        with pyro.get_param_store().scope(), _seeded(job.seed):
            outcome = study.run(job, place)
        ran = True
        folder.write(study, job, outcome, time.perf_counter() - start)
    except (Exception, SystemExit) as error:
        if ran and isinstance(error, FileError):
            raise
        text = str(error).strip().partition("\n")[0]
        folder.fail(job, f"{type(error).__name__}: {text}", traceback.format_exc())


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


def _run_processes(
    study: Study,
    todo: Sequence[Job],
    place: Place,
    folder: Folder,
    processes: Count,
    threads: int,
    view: Progress,
) -> None:
    """Keep so many processes busy; one that dies without a word has failed too."""
    context = multiprocessing.get_context("spawn")
    gpus = _gpus() if place.device in ("auto", "cuda") else []
    waiting = list(todo)
    running: dict[int, tuple[Job, BaseProcess, Connection]] = {}
    try:
        while waiting or running:
            for slot in range(processes):
                if slot not in running and waiting:
                    job = waiting.pop(0)
                    gpu = gpus[slot % len(gpus)] if gpus else None
                    receiver, sender = context.Pipe(duplex=False)
                    task = (study, job, place, folder.path, threads, gpu, sender)
                    process: BaseProcess = context.Process(target=_work, args=task)
                    with _sheltered():
                        process.start()
                    sender.close()
                    running[slot] = (job, process, receiver)
                    view.begin(job)
            multiprocessing.connection.wait([p.sentinel for _, p, _ in running.values()])
            for slot, (job, process, receiver) in list(running.items()):
                if not process.is_alive():
                    process.join()
                    _raise_what_it_said(receiver)
                    ended = folder.failed(job) and not process.exitcode
                    if not ended and not folder.finished(study, job):
                        folder.fail(job, f"the process ended with status {process.exitcode}")
                    del running[slot]
                    view.end(job, folder.failure(job))
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


@contextmanager
def _sheltered() -> Iterator[None]:
    """What starts here does not see Ctrl-C: this process alone does, and ends the others."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python's own helper process, which unblocks the signal when it starts.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise_what_it_said(receiver: Connection) -> None:
    """A process says only why it could write nothing."""
    with receiver:
        try:
            text = receiver.recv()
        except EOFError:
            return
    raise FileError(text)


def _gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in names][: torch.cuda.device_count()]


def _work(
    study: Study,
    job: Job,
    place: Place,
    path: Path,
    threads: int,
    gpu: str | None,
    sender: Connection,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA starts in this process
    try:
        _run(study, job, place, Folder(path))
    except FileError as error:
        sender.send(str(error))


def _end_with_parent() -> None:
    """Without it a killed study's jobs would run on, beside those of the study started again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
