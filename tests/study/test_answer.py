"""The answer of a comparison, against tests and intervals by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyronorm.study import Better, Column, Row, Table
from pyronorm.study.answer import answer

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
