"""Jobs at once, on Dask: in processes of this machine, or on the workers of a scheduler."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.resource_tracker
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from pyronorm.errors import OptionError

__all__ = ["connected", "refuse_without_dask"]

TRIES = 3
"""Processes that may end under a job, where it ran or was to run next, before it has failed."""

_SETTINGS = {
    "distributed.worker.daemon": False,  # jobs may have processes of their own
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.scheduler.allowed-failures": TRIES - 1,
    "distributed.scheduler.worker-saturation": 1.0,  # no job waits at a worker that may be ended
    "distributed.scheduler.worker-ttl": None,  # a job may keep Python's lock for long
    "distributed.comm.timeouts.connect": "300s",  # a machine may be busy
}


def refuse_without_dask() -> None:
    """Refuse what needs Dask where it is not installed.

    Raises:
        OptionError: if it is not.
    """
    if find_spec("distributed") is None:
        raise OptionError(
            "run_study: jobs at once (processes, --jobs) and a scheduler (--scheduler) need Dask: "
            "pip install 'pyronorm[distributed]'. With processes=1 jobs run one after the other "
            "without it."
        )


@contextmanager
def connected(processes: int, scheduler: str | None) -> Iterator[Any]:
    """A client of Dask.

    Args:
        processes: workers that are started here, if there is no scheduler; each is a process with one
            job at a time. They end with this process, whatever ends it.
        scheduler: the address of one that runs; None to start one here.

    Raises:
        OptionError: if no scheduler answers.
    """
    import dask
    import distributed

    kinds: Any = distributed  # without types

    if scheduler is not None:
        try:
            client = kinds.Client(scheduler, set_as_default=False)
        except (OSError, ValueError) as error:
            raise OptionError(
                f"run_study: no Dask scheduler answers at {scheduler!r}: {error}. Start one "
                "(dask scheduler) and its workers (dask worker ADDRESS --nthreads 1)."
            ) from error
        with client:
            yield client
        return
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="pyronorm-", ignore_cleanup_errors=True)
        )
        stack.enter_context(dask.config.set({**_SETTINGS, "temporary-directory": folder}))
        with _sheltered():
            cluster = stack.enter_context(
                kinds.LocalCluster(
                    n_workers=processes,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # and no fixed port
                    local_directory=folder,
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
            )
        yield stack.enter_context(kinds.Client(cluster, set_as_default=False))


@contextmanager
def _sheltered() -> Iterator[None]:
    """What starts here does not see Ctrl-C: this process alone does, and ends the others.

    Threads that start here pass that on to the processes that they start later.
    """
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
