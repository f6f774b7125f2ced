"""What the settings may be."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pyronorm.errors import OptionError
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from pyronorm.study.reference import PRIORS, Settings, choose_prior


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed must be an integer between 0 and"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"width": 0}, "width must be at least 1"),
        ({"chains": 1}, "chains must be at least 2"),
        ({"warmup": 0}, "warmup must be at least 1"),
        ({"draws": 3}, "draws must be at least 4"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"particles": 0}, "particles must be at least 1"),
        ({"bank_rows": 20}, "bank_rows must be at least 21"),
        ({"num_samples": 24}, "num_samples must be at least 25"),
        ({"directions": 0}, "directions must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"guide_lr": math.nan}, "guide_lr must be positive"),
        ({"level": 1.0}, "level must be between 0 and 1, got 1.0"),
        ({"num_data": 63}, "num_data must be at least the batch size 64, got 63"),
        ({"chains": 2, "draws": 499}, "chains, which have 998"),
        ({"prior": ScaleInvariant()}, "must be proper"),
    ],
    ids=str,
)
def test_settings_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Settings(**options)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().steps = 3


def test_quick_settings_keep_prior_and_seed() -> None:
    found = Settings.quick(BatchNoise(9), 5)
    assert (found.prior, found.seed) == (BatchNoise(9), 5)
    assert found.chains * (found.warmup + found.draws) < 1000
    assert Settings.quick().prior == Settings().prior == Standard(0.5, 0.5)


def test_priors_by_name() -> None:
    assert choose_prior("batch-noise") == BatchNoise(64)
    with pytest.raises(OptionError, match="no prior 'normal'; choose from standard, batch-noise"):
        choose_prior("normal")
    assert list(PRIORS) == ["standard", "batch-noise"]
