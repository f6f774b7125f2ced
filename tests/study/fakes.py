"""Studies that take no time, for processes of their own too."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyro
import torch

from pyronorm.errors import DataError, FileError
from pyronorm.study import (
    Better,
    Column,
    Job,
    Outcome,
    Place,
    Plot,
    Results,
    Row,
    Section,
    Study,
    Table,
    run_study,
)

COLUMNS = (
    Column("torch", "torch", 4, Better.LOWER, "A number of torch's generator."),
    Column("numpy", "numpy", 4, Better.LOWER, "A number of NumPy's generator."),
    Column("python", "python", 4, Better.HIGHER, "A number of Python's generator."),
    Column("never", "never", 1, Better.HIGHER, "Not to be seen."),
)


@dataclass(frozen=True)
class Inner:
    """Settings of settings."""

    steps: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)


@dataclass(frozen=True)
class FakeSettings:
    """Settings of every kind.

    Attributes:
        trouble: what goes wrong in a job, by method and seed.
        seconds: how long a job takes.
        numbers: how many numbers a job's array has, by method; else 6.
    """

    methods: tuple[str, ...] = ("a/x", "b/y")
    seeds: tuple[int, ...] = (0, 1)
    factor: float = 1.0
    size: int | None = None
    inner: Inner = field(default_factory=Inner)
    trouble: tuple[tuple[str, int, str], ...] = ()
    seconds: float = 0.0
    numbers: tuple[tuple[str, int], ...] = ()


def _raise(error: BaseException) -> None:
    raise error


_TROUBLE: Mapping[str, Callable[[], object]] = {
    "error": lambda: _raise(ValueError("out of luck\nand a second line\n  Trace: 1")),
    "library": lambda: _raise(DataError("<script>alert('|')</script> `code` *star* [x](y)")),
    "surrogate": lambda: _raise(OSError("no file caf\udce9")),
    "silent": lambda: _raise(KeyError()),
    "sys.exit": lambda: sys.exit(3),
    "file": lambda: _raise(FileError("its own")),
    "exit": lambda: os._exit(3),
    "quiet": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


@dataclass(frozen=True)
class Fake(Study):
    """A job draws one number of each generator, and touches a file in the data root.

    With a file ``healed`` in the data root nothing goes wrong, with ``unhurried`` nothing takes time.
    """

    title: ClassVar[str] = "Fake"

    name: str = "fake"
    settings: Any = FakeSettings()

    def jobs(self) -> Sequence[Job]:
        return [Job(m, seed) for seed in self.settings.seeds for m in self.settings.methods]

    def run(self, job: Job, place: Place) -> Outcome:
        settings = self.settings
        if place.data_root is not None:
            root = Path(place.data_root)
            with (root / f"{job.key}.runs").open("a") as file:
                file.write(f"{os.getpid()}\n")
            healed = (root / "healed").exists()
        else:
            healed = False
        hurried = place.data_root is None or not (Path(place.data_root) / "unhurried").exists()
        time.sleep(settings.seconds if hurried else 0)
        for method, seed, trouble in settings.trouble:
            if (method, seed) == (job.name, job.seed) and not healed:
                _TROUBLE[trouble]()
        pyro.param("fake", torch.ones(2))
        values = {
            "torch": float(torch.rand(())) * settings.factor,
            "numpy": float(np.random.rand()),  # noqa: NPY002
            "python": random.random(),
            "threads": float(torch.get_num_threads()),
        }
        row = Row(job.name, job.seed, values, {"size": settings.size or 0})
        size = dict(settings.numbers).get(job.name, 6) // 2
        return Outcome([row], {"draws/1": torch.randn(2, size).numpy()})

    def sections(self, results: Results) -> Sequence[Section]:
        table = Table("Numbers", results.rows, COLUMNS, baseline=self.settings.methods[0])

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for arrays in results.arrays.values():
                axes.plot(arrays["draws/1"][0])

        return [
            Section("Outcome", "What *came* out.", [table], [Plot("draws", "The draws.", draw)]),
            Section("End", "Nothing <b>more</b>."),
        ]


def fake(**settings: Any) -> Fake:
    """A fake study with settings that differ from the default."""
    return replace(Fake(), settings=FakeSettings(**settings))


def runs(folder: Path) -> dict[str, int]:
    """How often each job was begun."""
    return {f.stem: len(f.read_text().splitlines()) for f in sorted(folder.glob("*.runs"))}


def main() -> None:
    """Run a study in a process that can be killed."""
    folder, root, processes, seconds, seeds = sys.argv[1:]
    run_study(
        fake(seeds=tuple(range(int(seeds))), seconds=float(seconds)),
        Path(folder),
        place=Place(Path(root)),
        processes=int(processes),
        progress=False,
    )


if __name__ == "__main__":
    main()
