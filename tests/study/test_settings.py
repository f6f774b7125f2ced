"""What a comparison's settings may be."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from pyronorm.errors import OptionError
from pyronorm.study import Settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": ()}, ["seeds must be different", "()"]),
        ({"epochs": 0}, ["epochs", "0"]),
        ({"num_samples": -2}, ["num_samples", "-2"]),
        ({"bank_rows": 0}, ["bank_rows", "0"]),
        ({"arviz_samples": 0}, ["arviz_samples", "0"]),
        ({"batch_size": 1}, ["batch_size", "at least 2", "got 1"]),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        Settings(**options)
    assert isinstance(error.value, ValueError)
    assert all(word in str(error.value) for word in words)


def test_smallest_settings_are_allowed() -> None:
    Settings(seeds=(0,), epochs=1, num_samples=1, bank_rows=11, arviz_samples=1, batch_size=2)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().epochs = 3


def test_unknown_data_set() -> None:
    with pytest.raises(OptionError, match="digits"):
        Settings(data="cifar")


def test_a_bank_too_small_for_the_posterior() -> None:
    with pytest.raises(OptionError, match="bank_rows must be at least 11, got 5"):
        replace(Settings(), bank_rows=5)


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"seeds": (1, 1)}, {"seeds": (-1,)}],
    ids=str,
)
def test_settings_that_should_be_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Settings(**options)
