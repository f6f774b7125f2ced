"""Processes that tests start and end."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

KILLS = 20


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        # A process that ended and that nobody waited for is still listed, as Z.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_again_and_again(
    command: Sequence[str], at_work: Callable[[int], bool], longest: float
) -> int:
    """Start a command over and over, and kill it at random moments; the last time it ends itself.

    Args:
        command: what to start.
        at_work: whether the process of that number has begun with what takes time.
        longest: seconds of work that a process gets before it is killed, at most.

    Returns:
        How often it was killed.
    """
    draw = random.Random(0)
    for kills in range(KILLS + 1):
        process = subprocess.Popen(command)
        if kills < KILLS:
            wait_for(lambda p=process: at_work(p.pid) or p.poll() is not None, "work")  # type: ignore[misc]
            time.sleep(draw.uniform(0, longest))
            process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            return kills
        assert status == -signal.SIGKILL
    raise AssertionError("it never ended")


def runs_in(folder: Path) -> Callable[[int], bool]:
    """Whether a process is the one that owns a folder."""

    def at_work(process: int) -> bool:
        try:
            return f"process {process} " in (folder / "running.txt").read_text()
        except FileNotFoundError:
            return False

    return at_work
