"""Deep ensemble equivalents of a study's rows."""

from __future__ import annotations

import math

import pytest
import torch

from pyronorm.diagnostics import ensemble_curve
from pyronorm.likelihoods import Categorical
from pyronorm.study import Row
from pyronorm.study.equivalents import (
    CURVE,
    curve_rows,
    curve_table,
    equivalents,
    equivalents_text,
)
from pyronorm.study.table import summarize


def rows() -> list[Row]:
    """Three seeds that differ in level; a + b/m with b = 0.1."""
    found = []
    for seed, level in ((0, 0.3), (1, 0.5), (4, 0.2)):
        found += [
            Row(CURVE, seed, {"calibrated_nll": level + 0.1 / m}, {"networks": m})
            for m in (1, 2, 3)
        ]
        found.append(Row("noise", seed, {"calibrated_nll": level + 0.1 / 1.5}))
        found.append(Row("noise", seed, {"calibrated_nll": 9.0}, {"n": 8}))
        if seed:
            found.append(Row("best", seed, {"calibrated_nll": level}))
    found.append(Row("elsewhere", 7, {"calibrated_nll": 0.1}))
    return found


def test_methods_are_compared_by_seed() -> None:
    found = equivalents(rows())
    assert list(found) == ["noise", "best"]
    assert found["noise"].members == pytest.approx(1.5)
    assert (found["noise"].low, found["noise"].high) == pytest.approx((1.5, 1.5))
    assert math.isinf(found["best"].members)
    assert math.isnan(found["best"].low)  # two seeds
    text = equivalents_text(rows())
    assert text.endswith("- `noise`: 1.5 (1.5 to 1.5)\n- `best`: > 3")
    assert equivalents_text([]) == ""


def test_the_curve_is_a_row_for_each_size() -> None:
    torch.manual_seed(0)
    members = [Categorical().predict(torch.randn(1, 40, 3)) for _ in range(3)]
    y = torch.randint(3, (40,))
    found = curve_rows(members, y, 5)
    expected = ensemble_curve(members, y).nll.tolist()
    assert [row.values["calibrated_nll"] for row in found] == expected
    _, lines = summarize(curve_table([*found, Row("plain", 5, {"calibrated_nll": 0.1})]))
    assert list(lines) == [(1,), (2,), (3,)]
