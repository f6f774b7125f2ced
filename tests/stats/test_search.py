from __future__ import annotations

import math

import pytest

from pyronorm.errors import DataError
from pyronorm.stats.search import minimize_positive


@pytest.mark.parametrize("where", [0.013, 0.5, 3.0, 80.0])
def test_minimum(where: float) -> None:
    found = minimize_positive(lambda t: math.log(t / where) ** 2, 0.01, 100, "here", "Do that.")
    assert found == pytest.approx(where, rel=1e-5)


def test_the_lower_one_of_two() -> None:
    def two(t: float) -> float:
        u = math.log(t)
        return (u - 2) ** 2 * (u + 2) ** 2 + 0.1 * u

    assert minimize_positive(two, 0.01, 100, "here", "Do that.") == pytest.approx(
        math.exp(-2), rel=0.01
    )


@pytest.mark.parametrize("sign", [-1, 1])
def test_no_minimum_inside(sign: int) -> None:
    with pytest.raises(DataError, match=r"here: the optimum is not between 0\.01 and 100"):
        minimize_positive(lambda t: sign * t, 0.01, 100, "here", "Do that.")
