"""The answer of a comparison, against tests and intervals by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyronorm.study import Better, Column, Row, Table
from pyronorm.study.answer import answer, headline, judge_methods

NLL = Column("nll", "NLL", 3, Better.LOWER, "in nats")
BASE = [1.00, 1.10, 0.95, 1.02, 1.07]


def table(values, **options):
    rows = [Row(m, seed, {"nll": v}) for m, s in values.items() for seed, v in enumerate(s)]
    return Table("t", rows, [NLL], baseline="plain", **options)


def test_a_better_and_a_worse_method():
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    values = {
        "plain": BASE,
        "good": list(np.array(BASE) - 0.3 + noise),
        "bad": list(np.array(BASE) + 0.3 + noise),
        "same": list(np.array(BASE) + noise),
    }
    text = answer(table(values), NLL)
    assert text.startswith("**`good` is better and `bad` is worse than `plain`** in NLL.")
    low, high = stats.t.interval(0.95, 4, -0.3, noise.std(ddof=1) / 5**0.5)
    assert f"`good` -0.300 (95 % interval {low:+.3f} to {high:+.3f})" in text
    quantiles = stats.t.isf(0.025 / 3, 4) + stats.t.isf(0.2, 4)
    assert f"differences above {quantiles * noise.std(ddof=1) / 5**0.5:.3f} would" in text


def test_shared_examples_widen_the_interval():
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    values = {"plain": BASE, "good": list(np.array(BASE) - 0.3 + noise)}
    scale = noise.std(ddof=1) * (1 / 5 + 0.25) ** 0.5
    low, high = stats.t.interval(0.95, 4, -0.3, scale)
    text = answer(table(values, resampled=0.25), NLL)
    assert f"(95 % interval {low:+.3f} to {high:+.3f})" in text


def test_equivalence_needs_a_margin_and_two_tests():
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    near, far = np.array(BASE) + 0.01 + noise, np.array(BASE) + 0.01 + 5 * noise
    values = {"plain": BASE, "near": list(near), "far": list(far)}
    assert "quivalent" not in answer(table(values), NLL)
    # Both one-sided tests reject up to the p-value of the nearer end.
    p = stats.ttest_1samp(near - np.array(BASE), 0.03, alternative="less").pvalue
    assert 0.01 < p < 0.05
    text = answer(table(values), NLL, margin=0.03)
    assert "Equivalent, within 0.030 of `plain` (two one-sided tests, 5 %): `near`;" in text
    p = stats.ttest_1samp(near - np.array(BASE), 0.02, alternative="less").pvalue
    assert p > 0.05
    text = answer(table(values), NLL, margin=0.02)
    assert text.endswith("no difference seen is not equality.")


def test_no_difference():
    values = {"plain": BASE, "other": [0.99, 1.12, 0.96, 1.0, 1.08]}
    text = answer(table(values), NLL)
    assert text.startswith("**No method differs from `plain`** in NLL. `plain` has a NLL of 1.028.")
    assert "5 seeds" in text


@pytest.mark.parametrize("seeds", [1, 4])
def test_few_seeds_answer_nothing(seeds):
    values = {"plain": BASE[:seeds], "other": [0.5] * seeds}
    text = answer(table(values), NLL)
    assert text.startswith(f"**{seeds} seed{'s answer' if seeds > 1 else ' answers'} nothing**")
    assert "`other`" in text


def test_nothing_to_compare():
    assert answer(table({"plain": BASE}), NLL) == ""
    assert answer(table({"other": BASE}), NLL) == ""
    assert answer(Table("t", [], [NLL], baseline="plain"), NLL) == ""


# one sentence on two tasks

NOISE = np.array([0.01, -0.01, 0.02, -0.02, 0.0])


def verdict(gains, seeds=5):
    values = {"plain": BASE[:seeds]}
    values |= {name: list((np.array(BASE) + gain + NOISE)[:seeds]) for name, gain in gains.items()}
    words = {"plain": "plain networks", "noise": "noise in training", "drop": "dropout"}
    return judge_methods(table(values, words=words), NLL)


def test_the_headline_when_noise_helps_where_images_are_few():
    found = {
        "with 200 images": verdict({"noise": -0.3, "drop": 0.0}),
        "with 1,000 images": verdict({"noise": 0.0}),
    }
    text = headline(found)
    few, many = found.values()
    assert text.startswith(
        "**With 200 images noise in training is better than plain networks "
        f"({few.interval('noise', ', ', '')}), and 1 of 2 is not shown to differ (a difference of "
        f"{few.visible} would have been seen in four cases of five); with 1,000 images the other method "
        "is not shown to differ from plain networks (lowest on average: noise in training, "
        f"{many.interval('noise', ', ', '')}; a difference of {many.visible} would have been seen in "
        "four cases of five)**"
    )
    assert "5 seeds" in text
    assert text.count(". ") == 0  # one sentence


def test_the_headline_when_noise_does_harm():
    text = headline({"here": verdict({"noise": 0.3, "drop": 0.5})})
    assert text.startswith(
        "**Here dropout and noise in training are worse than plain networks (dropout +0.500, 95 %"
    )
    assert "better" not in text.partition("**.")[0].partition("** (")[0]
    assert "not shown" not in text


def test_the_headline_when_some_help_and_some_do_harm():
    text = headline({"here": verdict({"noise": 0.3, "drop": -0.5})})
    better, worse = "dropout is better than plain networks", "noise in training is worse than plain"
    assert better in text
    assert worse in text
    assert text.index(better) < text.index(worse)


def test_the_headline_when_nothing_differs_anywhere():
    text = headline(
        {"here": verdict({"noise": 0.0, "drop": 0.0}), "there": verdict({"noise": 0.0})}
    )
    assert "here none of 2 other methods is shown to differ" in text.lower()
    assert not any(word in text for word in ("is better", "is worse", "are better", "are worse"))


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_the_headline_of_few_seeds_says_nothing_of_methods(seeds):
    text = headline({"here": verdict({"noise": -0.3}, seeds), "there": None})
    words = f"Here {seeds} seed{'s test' if seeds > 1 else ' tests'} nothing"
    assert text == (
        f"**{words} (differences are tested from 5 on); there there is nothing to compare yet**."
    )


def test_the_order_of_a_verdict():
    found = verdict({"a": 0.3, "b": -0.2, "c": -0.4, "d": 0.5, "e": 0.0})
    assert (found.better, found.worse) == (["c", "b"], ["d", "a"])
    assert found.named("noise") == "noise in training"
    assert found.named("a") == "`a`"
