"""What a comparison's settings may be."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pyronorm.errors import OptionError
from pyronorm.study import Settings, Training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, ["epochs", "at least 1", "got 0"]),
        ({"batch_size": 1}, ["batch_size", "at least 2", "got 1"]),
        ({"lr": 0.0}, ["lr", "0.0"]),
        ({"lr": -1.0}, ["lr", "-1.0"]),
        ({"lr": math.nan}, ["lr", "nan"]),
        ({"lr": math.inf}, ["lr", "inf"]),
        ({"weight_decay": -0.1}, ["weight_decay", "-0.1"]),
        ({"weight_decay": math.nan}, ["weight_decay", "nan"]),
    ],
    ids=str,
)
def test_training_out_of_range(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        Training(**options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": ()}, ["seeds must be different", "()"]),
        ({"seeds": (1, 1)}, ["seeds", "(1, 1)"]),
        ({"seeds": (-1,)}, ["seeds", "between 0", "(-1,)"]),
        ({"num_samples": -2}, ["num_samples", "-2"]),
        ({"bank_rows": 10}, ["bank_rows must be at least 11, got 10"]),
        ({"bank_rows": 16, "draws_curve": (8, 32)}, ["bank_rows must be at least 32, got 16"]),
        ({"draws_curve": (0,)}, ["draws_curve", "0"]),
        ({"arviz_samples": 0}, ["arviz_samples", "0"]),
        ({"num_train": 1}, ["num_train", "at least 2", "got 1"]),
        ({"num_test": -5}, ["num_test", "-5"]),
        ({"noise": 1.0}, ["noise", "above 1", "1.0"]),
        ({"noise": math.nan}, ["noise", "nan"]),
        ({"noise": math.inf}, ["noise", "inf"]),
        ({"methods": ()}, ["no methods"]),
        ({"methods": ("batch/pint",)}, ["batch/pint", "Did you mean 'batch/point'?"]),
        ({"data": "didgits"}, ["didgits", "digits"]),
        ({"network": "resnet-1"}, ["resnet-1", "small-conv"]),
    ],
    ids=str,
)
def test_settings_out_of_range(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        Settings(**options)
    assert isinstance(error.value, ValueError)
    assert all(word in str(error.value) for word in words)


def test_smallest_settings_are_allowed() -> None:
    Settings(
        methods=("group/fixed",),
        seeds=(0,),
        num_train=2,
        num_test=2,
        training=Training(epochs=1, batch_size=2),
        noise=1.5,
        num_samples=1,
        bank_rows=11,
        arviz_samples=1,
    )


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().num_samples = 3
    with pytest.raises(FrozenInstanceError):
        Settings().training.epochs = 3


def test_noise_is_that_of_the_batch_size_where_none_is_given() -> None:
    training = Training(batch_size=48)
    assert Settings(training=training).noise_batch_size == 48
    assert Settings(training=training, noise=20.5).noise_batch_size == 20.5
