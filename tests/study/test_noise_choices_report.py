"""The report on choices: rates chosen by seed, contrasts, verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from pyronorm.study import NoiseChoices, Place, Results, Row, run_study, write_report
from pyronorm.study.noise_choices_report import choose_rates, contrast_gain
from tests.study.test_noise_choices import SETTINGS, STUDY
from tests.study.test_training_noise import row

pytestmark = pytest.mark.usefixtures("small_lenet")


def test_rates_are_chosen_on_validation_images_by_seed() -> None:
    rows = [
        row("batch", 0, 0.5, 0.4),
        row("batch", 0, 0.3, 0.6, lr=1e-2),
        row("batch", 1, 0.5, 0.4),
        row("batch", 1, 0.7, 0.3, lr=1e-2),
        row("weight", 0, 0.5, 0.4),
    ]
    chosen = choose_rates(rows, 5e-3)
    assert [
        (r.method, r.seed, r.values["calibrated_nll"], r.values["rate"], r.condition)
        for r in chosen
    ] == [("batch, rate chosen", 0, 0.5, 5e-3, {}), ("batch, rate chosen", 1, 0.7, 1e-2, {})]


def test_a_contrast_is_paired_by_seed() -> None:
    rows = [row("a", 0, 0.5), row("b", 0, 0.2), row("a", 1, 0.4), row("b", 2, 0.1)]
    rows += [row("b", 1, 0.5)]
    gain = contrast_gain(rows, {"a": 1, "b": -2})
    assert dict(gain) == pytest.approx({0: 0.1, 1: -0.6})


def made_up(seeds: int, **nll: float) -> Results:
    """Every job's averaged reading, with given means and the same small spread."""
    rows = []
    for seed in range(seeds):
        for name, mean in {"batch": 0.6, **nll}.items():
            spread = 0.002 * np.sin(seed + 7 * len(name))
            rows.append(row(name.replace("_", " "), seed, mean + spread))
    return Results(rows, {}, {}, {}, {})


def test_an_answer_for_each_question() -> None:
    names = {
        "batch, noise": 0.53,
        "batch, noise shift only": 0.56,
        "batch, noise scale only": 0.531,
        "weight": 0.55,
        "weight, noise": 0.54,
        "weight, noise shift only": 0.5405,
        "weight, noise scale only": 0.52,
    }
    results = made_up(5, **names)
    study = NoiseChoices("choices", replace(SETTINGS, questions=("parts", "warm-up")))
    first, parts, warm_up = study.sections(results)
    assert first.tables[0].baseline == "batch"
    _, verdict, rest = parts.answer.split("**")
    better, worse, same = (
        verdict.split(f"{word}: ")[1].split(". ")[0]
        for word in ("Better", "Worse", "The same within 0.02")
    )
    assert "`batch, noise shift only` against `batch`" in better
    assert worse == "`batch, noise shift only` against `batch, noise`"
    assert "`weight, noise shift only` against `weight, noise`" in same
    # The interval is Student's, of the differences.
    gain = np.array(contrast_gain(results.rows, {"batch, noise shift only": 1, "batch, noise": -1}))
    low, high = stats.t.interval(0.95, 4, gain.mean(), stats.sem(gain))
    line = f"`batch, noise`: {gain.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    assert line in rest
    assert "no intervals" in warm_up.answer  # nothing has run
    (plot,) = parts.plots
    figure = Figure()
    plot.draw(figure)
    assert len(figure.axes[0].get_yticklabels()) == 8
    assert not warm_up.plots


def test_few_seeds_have_no_verdicts() -> None:
    study = NoiseChoices("choices", replace(SETTINGS, questions=("normalizers",)))
    names: dict[str, Any] = {"batch, noise": 0.5, "weight": 0.6, "weight, noise": 0.5}
    (_, four), (_, two) = (study.sections(made_up(n, **names)) for n in (4, 2))
    assert "**" not in four.answer
    assert "`batch, noise` against `batch`: -0.1" in four.answer
    assert "no intervals" in two.answer


def test_all_questions_before_anything_has_run() -> None:
    results = Results([], {}, {}, {}, {})
    first, *others = STUDY.sections(results)
    assert len(others) == len(SETTINGS.questions)
    assert not first.tables[0].rows


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    study = NoiseChoices("choices", replace(SETTINGS, seeds=(0, 1, 2)))
    results = run_study(study, tmp_path, place=Place(device="cpu"), progress=False)
    assert not results.failures
    page = write_report(study, tmp_path).read_text(encoding="utf-8")
    for name in SETTINGS.questions:
        assert f"Question: {name}" in page
    assert "rate chosen" in page
    assert all(isinstance(r, Row) for r in results.rows)
