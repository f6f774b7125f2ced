"""The two tasks of `pyronorm compare` as one study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyronorm.errors import OptionError
from pyronorm.study import (
    Compare,
    CompareSettings,
    Folder,
    Job,
    Outcome,
    Place,
    Results,
    Row,
    Settings,
    make_study,
    restore_study,
    write_report,
)

SETTINGS = CompareSettings(many=Settings(methods=("batch/point", "batch/mcbn", "weight/fixed")))
STUDY = Compare("compare", SETTINGS)
SPREAD = (0.01, -0.01, 0.02, -0.02, 0.0)


def values(nll: float, **more: float) -> dict[str, float]:
    numbers = {"accuracy": 0.9, "ece": 0.1, "calibrated_ece": 0.05, "temperature": 1.1}
    numbers |= {"nll": nll + 0.1, "calibrated_nll": nll, "validation_nll": nll, "passes": 1.0}
    return {**numbers, "train_seconds": 2.0, "predict_ms": 1.0, "brier": 0.2, **more}


def outcome(job: Job, few: float, many: float) -> Outcome:
    """Rows as the tasks make them, plain networks at 1 and the others apart from it by so much."""
    task, _, name = job.name.partition(": ")
    base = 1.0 + 0.1 * job.seed
    apart = SPREAD[job.seed]
    made: list[tuple[str, float, dict[str, str | float]]] = []
    if task == "many images":
        made = [(name, many + apart if name != "batch/point" else 0.0, {})]
        if name == "batch/point":
            made.append(("batch/mcbn", many + 0.001 + 2 * apart, {}))
    elif name == "batch":
        made = [("batch", 0.0, {}), ("batch, own noise after training", apart, {})]
        made += [("ensemble", -0.2 + apart if n == 2 else 0.0, {"level": n}) for n in (1, 2)]
    else:
        level = float(name.rpartition("=")[2])
        method = "dropout" if name.startswith("dropout") else "batch, noise"
        made = [(method, few + apart + level / 1000, {"level": level})]
        made += [(f"{method}, no averaging", few + 0.5, {"level": level})]
    rows = [Row(m, job.seed, values(base + d), {**c, "task": task}) for m, d, c in made]
    return Outcome(rows)


def results(few: float, many: float, study: Compare = STUDY) -> Results:
    jobs = list(study.jobs())
    rows = [row for job in jobs for row in outcome(job, few, many).rows]
    return Results(rows, {}, {}, dict.fromkeys(jobs, 1.0), {})


def test_jobs_are_those_of_both_tasks_seed_by_seed() -> None:
    jobs = STUDY.jobs()
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    first = [job.name for job in jobs if job.seed == 0]
    assert first == [
        *(f"few images: {job.name}" for job in STUDY.few.jobs() if job.seed == 0),
        *(f"many images: {job.name}" for job in STUDY.many.jobs() if job.seed == 0),
    ]
    assert len({job.key for job in jobs}) == len(jobs) == 5 * (7 + 2)


def test_seeds_are_those_of_both_tasks() -> None:
    study = make_study("compare", quick=True, seeds=(4, 2))
    assert study.settings.few.seeds == study.settings.many.seeds == (4, 2)
    assert study.fingerprint() == make_study("compare", quick=True).fingerprint()
    assert [job.seed for job in study.jobs()][:: len(study.jobs()) - 1] == [4, 2]
    with pytest.raises(OptionError, match="seeds must be different"):
        CompareSettings(seeds=(1, 1))


def test_a_job_is_run_by_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(task: object, job: Job, place: Place) -> Outcome:
        seen.append((type(task).__name__, job))
        return Outcome([Row("m", job.seed, {"nll": 1.0}, {"level": 2})], {"y": np.arange(2)})

    for name in ("TrainingNoise", "Comparison"):
        monkeypatch.setattr(f"pyronorm.study.compare.{name}.run", run)
    few, many = (next(j for j in STUDY.jobs() if j.name.startswith(t)) for t in ("few", "many"))
    assert STUDY.run(few, Place()).rows[0].condition == {"level": 2, "task": "few images"}
    found = STUDY.run(many, Place())
    assert found.rows[0].condition == {"level": 2, "task": "many images"}
    assert list(found.arrays) == ["y"]
    assert seen == [("TrainingNoise", Job("batch", 0)), ("Comparison", Job("batch/point", 0))]


TRAINED, DROPOUT = "batch normalization trained with noise", "Monte-Carlo dropout"
TWO, WEIGHT = "ensemble of 2 plain networks", "weight normalization with fixed noise"
MCBN, PLAIN = "Monte-Carlo batch normalization", "plain batch normalization"


@pytest.mark.parametrize(
    ("few", "many", "words"),
    [
        (
            -0.5,
            0.0,
            (
                f"**With 200 training images {DROPOUT}, {TRAINED} and {TWO} are better than {PLAIN} (",
                "and 1 of 4 is not shown to differ",
                f"; with all training images none of 2 other methods is shown to differ from {PLAIN}",
            ),
        ),
        (
            0.5,
            -0.4,
            (
                f"**With 200 training images {TWO} is better than {PLAIN} (",
                f"and {TRAINED} and {DROPOUT} are worse than {PLAIN} (",
                f"; with all training images {WEIGHT} and {MCBN} are better than {PLAIN} (",
            ),
        ),
        (
            0.0,
            0.4,
            (
                f"**With 200 training images {TWO} is better than {PLAIN} (",
                "and 3 of 4 are not shown to differ",
                f"; with all training images {MCBN} and {WEIGHT} are worse than {PLAIN} (",
            ),
        ),
    ],
)
def test_the_sentence_says_what_came_out(few: float, many: float, words: tuple[str, ...]) -> None:
    first, *others = STUDY.sections(results(few, many))
    text = first.answer
    for part in words:
        assert part in text
    assert "5 seeds" in text
    few_table, many_table = first.tables
    methods = list(dict.fromkeys(row.method for row in few_table.rows))
    assert methods == [
        *("batch", "batch, own noise after training"),
        *("batch, noise", "dropout", "ensemble of 2"),
    ]
    # The weakest noise is the best here by its validation NLL.
    for row in few_table.rows:
        if row.method == "batch, noise":
            assert row.values["difference"] == pytest.approx(few + SPREAD[row.seed] + 0.004)
        if row.method == "batch":
            assert "difference" not in row.values
    assert {row.method for row in many_table.rows} == set(SETTINGS.many.methods)
    assert not any(section.answer for section in others)
    assert all(section.folded for section in others)


def test_with_nothing_and_with_one_task_only() -> None:
    whole = results(0.0, 0.0)
    few = [row for row in whole.rows if row.condition["task"] == "few images"]
    only = STUDY.sections(replace(whole, rows=few))
    assert "with all training images there is nothing to compare yet" in only[0].answer
    assert len(only[0].tables) == 1


def test_its_report(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.start(STUDY, "pyronorm compare")
    for job in STUDY.jobs():
        folder.write(STUDY, job, outcome(job, -0.5, 0.0), 1.0)
    assert restore_study(folder.record) == STUDY
    html = write_report(STUDY, tmp_path).read_text(encoding="utf-8")
    assert html.index("are better than plain") < html.index("What came out")
    plots: Mapping[str, Path] = {p.stem: p for p in (tmp_path / "plots").iterdir()}
    assert {"differences", "equivalent", "levels", "nll"} == set(plots)
    assert html.count('summary class="part"') >= 3
