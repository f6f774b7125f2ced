"""What `pyronorm compare` runs: a task with few images beside one with many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pyronorm.checks import check_fields
from pyronorm.randomness import SeedNumber
from pyronorm.study.checks import check_seeds
from pyronorm.study.compare_report import sections
from pyronorm.study.comparison import Comparison
from pyronorm.study.settings import Settings, Training
from pyronorm.study.study import Job, Outcome, Place, Results, Section, Study
from pyronorm.study.table import Row
from pyronorm.study.training_noise import TrainingNoise, TrainingNoiseSettings

__all__ = ["Compare", "CompareSettings"]

_FEW, _MANY = "few images", "many images"
_TASK = "task"  # the condition that tells rows of the two apart


def _few() -> TrainingNoiseSettings:
    return TrainingNoiseSettings(
        data="digits",
        network="lenet-5-8",
        noise=(("batch", (4.0, 8.0, 16.0)),),
        dropouts=(0.05, 0.1, 0.2),
        after=(),
        members=2,
        num_train=200,
        num_validation=300,
        training=Training(60, 32, 2e-3),
        num_samples=16,
    )


@dataclass(frozen=True)
class CompareSettings:
    """The two tasks.

    Attributes:
        few: a network that is large for few images: noise in training, dropout, an ensemble.
        many: all normalizers and posteriors where there are images enough.
        seeds: of both tasks; theirs are replaced.
    """

    few: TrainingNoiseSettings = field(default_factory=_few)
    many: Settings = field(default_factory=Settings)
    seeds: tuple[SeedNumber, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        check_fields(self)
        check_seeds(self.seeds)
        for name in ("few", "many"):
            object.__setattr__(self, name, replace(getattr(self, name), seeds=self.seeds))


@dataclass(frozen=True)
class Compare(Study):
    """Two studies as one: where noise is asked for, with few images, and where there is no need of it.

    Jobs are those of :class:`TrainingNoise` and of :class:`Comparison`, seed by seed.
    """

    title: ClassVar[str] = "Batch noise with few images and with many"

    name: str
    settings: CompareSettings

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def tasks(self) -> Mapping[str, Study]:
        """The two studies, by the names that their jobs begin with."""
        return {_FEW: self.few, _MANY: self.many}

    @property
    def few(self) -> TrainingNoise:
        """The task with few images."""
        return TrainingNoise(_FEW, self.settings.few)

    @property
    def many(self) -> Comparison:
        """The task with many images."""
        return Comparison(_MANY, self.settings.many)

    def jobs(self) -> Sequence[Job]:
        """The jobs of both tasks, so that an interrupted run has whole seeds."""
        found = [(task, job) for task, study in self.tasks.items() for job in study.jobs()]
        order = {seed: position for position, seed in enumerate(self.settings.seeds)}
        found.sort(key=lambda pair: order[pair[1].seed])
        return [_named(task, job) for task, job in found]

    def run(self, job: Job, place: Place) -> Outcome:
        """Run a job of one of the tasks."""
        task, _, name = job.name.partition(": ")
        outcome = self.tasks[task].run(Job(name, job.seed), place)
        rows = [replace(row, condition={**row.condition, _TASK: task}) for row in outcome.rows]
        return replace(outcome, rows=rows)

    def sections(self, results: Results) -> Sequence[Section]:
        """One sentence, a table and a picture for both tasks; each task at length."""
        few, many = (_part(results, task, study) for task, study in self.tasks.items())
        return sections(self.few, few, self.many, many)


def _named(task: str, job: Job) -> Job:
    return Job(f"{task}: {job.name}", job.seed)


def _part(results: Results, task: str, study: Study) -> Results:
    """The results of one task, as its own study has them."""
    own = {_named(task, job): job for job in study.jobs()}

    def chosen(values: Mapping[Job, Any]) -> dict[Job, Any]:
        return {own[job]: value for job, value in values.items() if job in own}

    rows = [
        Row(row.method, row.seed, row.values, _without_task(row.condition))
        for row in results.rows
        if row.condition[_TASK] == task
    ]
    return Results(
        rows,
        chosen(results.arrays),
        chosen(results.arviz),
        chosen(results.seconds),
        chosen(results.failures),
        chosen(results.environments),
        chosen(results.notes),
    )


def _without_task(condition: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    return {name: value for name, value in condition.items() if name != _TASK}
