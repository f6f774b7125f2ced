"""Noise in training: what jobs train and judge, and what the report chooses and says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pyronorm.errors import OptionError
from pyronorm.study import (
    Job,
    Place,
    Results,
    Row,
    Training,
    TrainingNoise,
    TrainingNoiseSettings,
    format_table,
    noise_networks,
    run_study,
    write_report,
)
from pyronorm.study.training_noise_report import choose_levels, in_words, paired_interval

SETTINGS = TrainingNoiseSettings(
    data="digits",
    network="lenet-5",
    noise=(("batch", (8.0, 32.0)), ("weight", (8.0,))),
    dropouts=(0.1,),
    after=(16.0,),
    members=2,
    seeds=(3, 1),
    num_train=96,
    num_validation=40,
    num_test=40,
    training=Training(1, 32),
    num_samples=3,
    statistics_batches=1,
)
STUDY = TrainingNoise("noise", SETTINGS)
PLACE = Place(device="cpu")
pytestmark = pytest.mark.usefixtures("small_lenet")


def found(name: str, study: TrainingNoise = STUDY) -> dict[tuple[Any, ...], dict[str, float]]:
    rows = study.run(Job(name, 3), PLACE).rows
    assert all(row.seed == 3 for row in rows)
    return {(row.method, *row.condition.values()): dict(row.values) for row in rows}


def test_jobs() -> None:
    names = [job.name for job in STUDY.jobs() if job.seed == 3]
    assert names == [
        *("batch", "batch, n=8", "batch, n=32", "weight", "weight, n=8", "dropout, rate=0.1"),
    ]
    assert len(STUDY.jobs()) == 2 * len(names)


def test_ensembles_are_averages_over_their_members() -> None:
    rows = found("batch")
    assert list(rows) == [
        *(("batch",), ("batch, own noise after training",)),
        *(("batch, noise after training", 16.0), ("ensemble", 1), ("ensemble", 2)),
    ]
    one, two = rows["ensemble", 1], rows["ensemble", 2]
    assert two["nll"] < one["nll"]  # Jensen: the mixture is better than its members on average
    assert rows["batch",]["nll"] != one["nll"]
    assert two["train_seconds"] == pytest.approx(2 * rows["batch",]["train_seconds"])
    assert [rows[key]["passes"] for key in rows] == [1, 3, 3, 1, 2]
    assert rows["batch",]["calibrated_nll"] != rows["batch",]["nll"]


def test_noise_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    train = noise_networks.train

    def spy(*args: Any, **options: Any) -> Any:
        made.append(options)
        return train(*args, **options)

    monkeypatch.setattr(noise_networks, "train", spy)
    rows = found("batch, n=8")
    assert list(rows) == [
        (f"batch, noise{rest}", 8.0) for rest in ("", ", no averaging", ", neutral statistics")
    ]
    # Batch normalization standardizes, so that the nominal n is the realized one.
    assert rows["batch, noise", 8.0]["realized_noise"] == pytest.approx(8.0, rel=0.2)
    assert len({values["nll"] for values in rows.values()}) == 3
    assert [values["passes"] for values in rows.values()] == [3, 1, 3]
    assert [(options["noise"], options["draws"]) for options in made] == [(8.0, 1)]


def test_dropout() -> None:
    rows = found("dropout, rate=0.1")
    assert list(rows) == [("dropout", 0.1), ("dropout, no averaging", 0.1)]
    assert rows["dropout", 0.1]["passes"] == 3


# the report

VALUES = {
    "accuracy": 0.9,
    "nll": 0.5,
    "ece": 0.1,
    "calibrated_ece": 0.1,
    "temperature": 1.2,
    "passes": 1.0,
    "train_seconds": 2.0,
}


def row(
    method: str, seed: int, nll: float, validation: float = 0.0, t: float = 1.2, **condition: Any
) -> Row:
    values = {**VALUES, "calibrated_nll": nll, "validation_nll": validation, "temperature": t}
    return Row(method, seed, values, condition)


def test_strengths_are_chosen_on_validation_images_by_seed() -> None:
    rows = [
        row("batch", 0, 0.5),
        row("batch, noise", 0, 0.3, 0.35, 0.8, level=4.0),
        row("batch, noise", 0, 0.4, 0.33, 1.3, level=8.0),
        row("batch, noise", 1, 0.3, 0.35, 0.7, level=4.0),
        row("batch, noise", 1, 0.4, 0.38, 1.1, level=8.0),
        row("batch, noise, no averaging", 0, 0.6, 0.1, level=4.0),
        row("batch, noise, no averaging", 0, 0.7, 0.9, level=8.0),
        row("batch, noise, neutral statistics", 0, 0.8, 0.1, level=4.0),
        row("batch, noise, neutral statistics", 0, 0.9, 0.9, level=8.0),
    ]
    chosen = choose_levels(rows)
    assert [
        (r.method, r.seed, r.values["calibrated_nll"], r.values.get("chosen")) for r in chosen
    ] == [
        ("batch", 0, 0.5, None),
        ("batch, noise, by temperature", 0, 0.3, 4.0),  # log .8 is nearer to 0 than log 1.3
        ("batch, noise", 0, 0.4, 8.0),
        ("batch, noise", 1, 0.3, 4.0),
        ("batch, noise, by temperature", 1, 0.4, 8.0),
        ("batch, noise, no averaging", 0, 0.6, 4.0),
        ("batch, noise, neutral statistics", 0, 0.9, 8.0),  # as with statistics of each draw
    ]
    assert not any(r.condition for r in chosen)


def made_up(seeds: int) -> Results:
    rows = []
    for seed in range(seeds):
        shift = 0.01 * np.sin(seed)
        rows += [row("ensemble", seed, 0.4 + 0.1 / m + shift, level=m) for m in (1, 2, 3, 4)]
        rows += [row("batch", seed, 0.5 + shift)]
        for n in (4.0, 8.0):
            nll = 0.44 + 0.001 * np.cos(seed) + shift + (n == 4.0)
            rows += [row("batch, noise", seed, nll, nll, level=n)]
        rows += [row("dropout", seed, 0.45 + shift, 0.4, level=0.1)]
    return Results(rows, {}, {}, {}, {})


def test_the_report_says_what_noise_is_worth() -> None:
    first, levels = STUDY.sections(made_up(5))
    # NLL .44 = .4 + .1 / m at m = 2.5.
    assert "- batch normalization trained with noise: 2.5 (" in first.answer
    assert "- Monte-Carlo dropout: 2.0 (" in first.answer
    assert "batch normalization trained with noise is better than" in first.answer
    assert "against the plain network -0.060 (-0.062 to -0.059)" in first.answer
    assert "two -0.010" in first.answer
    assert "ensemble" not in first.answer.split("\n\n", 2)[2]
    (table,) = first.tables
    assert [line[0] for line in format_table(table).lines] == [
        *("batch", "batch, noise, by temperature", "batch, noise"),
        "dropout",  # of one rate, so that nothing is chosen
        *(f"ensemble of {m}" for m in (2, 3, 4)),
    ]
    assert {line[1] for line in format_table(levels.tables[0]).lines} == {"4", "8", "0.1"}
    drawn = [Figure() for _ in first.plots]
    for plot, figure in zip(first.plots, drawn, strict=True):
        plot.draw(figure)
        assert all(axes.lines for axes in figure.axes)
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert set(labels) == {in_words(r.method) for r in table.rows if r.method != "batch"}
    assert labels[-3:] == [*(f"ensemble of {m} plain networks" for m in (2, 3, 4))]


def test_few_seeds_have_no_intervals() -> None:
    first, *_ = STUDY.sections(made_up(2))
    assert "no intervals" in first.answer
    first.plots[0].draw(Figure())


def test_the_interval_is_students() -> None:
    import pandas as pd
    from scipy.stats import t as student

    a, b = pd.Series({0: 1.0, 1: 2.0, 2: 4.0}), pd.Series({2: 1.0, 1: 1.5, 0: 0.0, 7: 9.0})
    gain = np.array([1.0, 0.5, 3.0])
    low, high = student.interval(0.95, 2, gain.mean(), gain.std(ddof=1) / 3**0.5)
    assert paired_interval(a, b) == pytest.approx((1.5, low, high))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    settings = replace(SETTINGS, noise=(("batch", (8.0,)),), seeds=(0,))
    study = TrainingNoise("noise", settings)
    results = run_study(study, tmp_path, place=PLACE, progress=False)
    assert not results.failures
    page = write_report(study, tmp_path).read_text(encoding="utf-8")
    assert "One network and ensembles" in page


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"noise": (("layer", (8.0,)),)}, "layer"),
        ({"noise": (("batch", (8.0,)), ("batch", (4.0,)))}, "batch, batch"),
        ({"noise": (("batch", (1.0,)),)}, "1.0"),
        ({"after": (0.5,)}, "0.5"),
        ({"dropouts": ()}, "dropouts"),
        ({"dropouts": (0.0, 0.1)}, "dropouts"),
        ({"members": 1}, "members"),
        ({"data": "mnisst"}, "mnisst"),
    ],
    ids=str,
)
def test_settings_out_of_range(options: dict[str, Any], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        TrainingNoiseSettings(**options)
