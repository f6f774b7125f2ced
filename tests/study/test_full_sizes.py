"""The full sizes of the studies, end to end on a tiny synthetic CIFAR-10."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pyronorm.errors import DataError
from pyronorm.study import STUDIES, Place, make_study, run_study, write_report
from tests.study.synthetic import write_cifar10

CHANGES = {
    "stochastic-normalization": {
        "methods": ("batch/point", "batch/mcbn", "analytic/low-rank"),
        "bank_rows": 11,
        "draws_curve": (1, 4),
        "num_samples": 2,
        "arviz_samples": 3,
    },
    "batch-size": {
        "batch_sizes": (4,),
        "groups": (2,),
        "whitening_groups": (4,),
        "bank_rows": 20,
        "num_samples": 2,
        "disturbance_images": 8,
    },
    "cifar": {
        "noise": (("batch", (8.0,)), ("group", (8.0,))),
        "dropouts": (0.1,),
        "after": (16.0,),
        "members": 2,
        "num_validation": 20,
        "num_samples": 2,
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cifar10(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_full_size(name: str, root: Path, tmp_path: Path) -> None:
    full = STUDIES[name].full
    training = replace(full.training, epochs=1, batch_size=16)  # precision and augmentation stay
    study = make_study(name, seeds=(0,), training=training, **CHANGES[name])
    assert study.settings.data == "cifar10"
    assert study.settings.training.augment
    assert study.settings.training.precision == "bf16-mixed"
    place = Place(root, "cpu", allow_incomplete=True)
    results = run_study(study, tmp_path / "out", place=place, progress=False)
    assert not results.failures
    assert len(results.seconds) == len(study.jobs())
    page = write_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "120 of 60,000" in page or "100 of 50,000" in page  # the note on missing images


def test_an_incomplete_copy_is_refused_unless_wanted(root: Path, tmp_path: Path) -> None:
    study = make_study("stochastic-normalization", seeds=(0,), methods=("batch/point",))
    results = run_study(study, tmp_path / "out", place=Place(root, "cpu"), progress=False)
    (failure,) = results.failures.values()
    assert DataError.__name__ in failure
    assert "allow_incomplete" in failure
