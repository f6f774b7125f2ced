"""Text as Markdown shows it."""

from __future__ import annotations

import pytest

from pyronorm.study.markup import code, duration, escape


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.123, "0.12 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (16226.0, "4 h 30 min"),
    ],
)
def test_durations_have_units_and_no_false_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_names_are_shown_as_they_are() -> None:
    assert escape("a*b_\nc") == r"a\*b\_ c"
    assert code("a`b") == "``a`b``"
