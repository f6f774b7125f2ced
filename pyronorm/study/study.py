"""What a study is: jobs that run on their own, and a way to show what came out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from pyronorm.files import StrPath
from pyronorm.study.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Job", "Outcome", "Place", "Plot", "Results", "Section", "Study"]


def file_name(name: str) -> str:
    """A name with a hyphen for whatever a file's name should not have."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name)


@dataclass(frozen=True)
class Job:
    """The smallest part of a study that runs on its own: one training and all that is judged from it.

    Attributes:
        name: unique among the jobs of a seed.
        seed: decides everything random in it.
    """

    name: str
    seed: int

    @property
    def key(self) -> str:
        """A name for its files."""
        return f"{file_name(self.name)}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class Place:
    """Where jobs run; it does not belong to a study's configuration.

    Attributes:
        data_root: folder of the data sets that are not bundled; None for the environment variable.
        device: "auto", "cpu", "cuda", ...
        allow_incomplete: also take copies of data sets that lack images; the report says so.
    """

    data_root: StrPath | None = None
    device: str = "auto"
    allow_incomplete: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a job found.

    Attributes:
        rows: its lines of the tables.
        arrays: what the plots need, by name.
        idatas: ArviZ data to keep, by name.
        note: what has to be said beside the figures, such as missing images; empty if nothing.
    """

    rows: Sequence[Row]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    idatas: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, eq=False)
class Results:
    """What the finished jobs of a study found.

    Attributes:
        rows: all lines, in the order of the jobs.
        arrays: arrays of each finished job.
        arviz: files with ArviZ data, by job and name.
        seconds: how long each finished job took.
        failures: what each job that failed ended with, in one line.
        environments: versions, machine and commit that each finished job ran with.
        notes: what a job wants said beside the figures, where it does.
    """

    rows: Sequence[Row]
    arrays: Mapping[Job, Mapping[str, NDArray[Any]]]
    arviz: Mapping[Job, Mapping[str, Path]]
    seconds: Mapping[Job, float]
    failures: Mapping[Job, str]
    environments: Mapping[Job, Mapping[str, str]] = field(default_factory=dict)
    notes: Mapping[Job, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """A figure of a report.

    Attributes:
        name: of its file.
        caption: what is seen, with units.
        draw: draws it into an empty figure.
        size: width and height in inches.
    """

    name: str
    caption: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (7.0, 4.5)


@dataclass(frozen=True)
class Section:
    """A part of a report: text, tables, plots.

    Attributes:
        title: heading.
        text: paragraphs in Markdown, separated by empty lines.
        answer: what came out, in a paragraph that comes on top of the report; printed by the command
            line, too.
        tables: tables, shown in this order.
        plots: figures, shown after the tables.
        folded: whether a page shows the title alone at first.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    answer: str = ""
    folded: bool = False


def _without_seeds(value: Any) -> Any:
    """More seeds are more jobs, and not other ones; also in settings of settings."""
    if not isinstance(value, dict):
        return value
    return {key: _without_seeds(part) for key, part in value.items() if key != "seeds"}


class Study(ABC):
    """A question to data: settings, jobs, and how the outcome is shown.

    A study is a frozen dataclass with the fields ``name`` and ``settings``; the settings are a frozen
    dataclass of numbers, strings and tuples of them, with ``seeds`` among them. Together they decide
    every job's outcome.
    """

    title: ClassVar[str]
    """Heading of the report."""

    name: str
    settings: Any

    @abstractmethod
    def jobs(self) -> Sequence[Job]:
        """All jobs, in the order in which to run them."""

    @abstractmethod
    def run(self, job: Job, place: Place) -> Outcome:
        """Run one of the jobs. Everything random in it follows from the job's seed."""

    @abstractmethod
    def sections(self, results: Results) -> Sequence[Section]:
        """The report on what there is so far; the first table is the main one."""

    def configuration(self) -> dict[str, Any]:
        """Name and settings, as JSON has them."""
        settings = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        return {"study": self.name, "settings": settings}

    def fingerprint(self) -> str:
        """Eight hexadecimal digits that stand for the configuration, whatever the seeds."""
        text = json.dumps(_without_seeds(self.configuration()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
