"""Names and fingerprints of studies and jobs."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from pyronorm.study import METHODS, STUDIES, Job, Settings, Study, Training, make_study
from tests.study.fakes import Fake, FakeSettings, Inner, fake


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("batch/point", "batch-point-seed3"),
        ("n=32 lr=0.5", "n=32-lr=0.5-seed3"),
        ("../../etc/passwd", "..-..-etc-passwd-seed3"),
        ("a\nb\0c", "a-b-c-seed3"),
        ("Größe", "Gr-e-seed3"),
        ('<>:"|?*\\', "--seed3"),
        ("", "-seed3"),
    ],
)
def test_keys_are_names_of_files(name: str, key: str) -> None:
    assert Job(name, 3).key == key
    assert re.fullmatch(r"[A-Za-z0-9.=-]+", key)


def test_a_job_says_what_it_is() -> None:
    assert str(Job("batch/point", 3)) == "batch/point, seed 3"


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", STUDIES)
def test_keys_of_the_catalog_are_unique(name: str, quick: bool) -> None:
    jobs = make_study(name, quick=quick).jobs()
    keys = [job.key.lower() for job in jobs]  # some file systems do not tell case
    assert len(set(keys)) == len(jobs) > 0
    assert len(set(jobs)) == len(jobs)


def test_every_method_makes_a_key_of_its_own() -> None:
    assert len({Job(name, 0).key for name in METHODS}) == len(METHODS)


# fingerprints

OTHER: dict[str, Any] = {
    "methods": ("c/z",),
    "factor": 2.0,
    "size": 3,
    "numbers": (("a/x", 5),),
    "inner": Inner(steps=4),
    "trouble": (("a/x", 0, "error"),),
    "seconds": 0.5,
}


def test_the_fingerprint_changes_with_each_setting_and_not_with_seeds() -> None:
    assert {f.name for f in fields(FakeSettings)} == {*OTHER, "seeds"}
    found = [fake(**{name: value}).fingerprint() for name, value in OTHER.items()]
    found += [fake().fingerprint(), fake(inner=Inner(rates=(0.2, 0.1))).fingerprint()]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("[0-9a-f]{8}", fingerprint) for fingerprint in found)
    assert fake(seeds=(5, 6, 7)).fingerprint() == fake().fingerprint()


def test_the_fingerprint_changes_with_the_study() -> None:
    assert Fake("other").fingerprint() != Fake().fingerprint()


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """All settings, and those inside them, by path."""
    found: dict[str, Any] = {}
    for f in fields(value):
        inner = getattr(value, f.name)
        if is_dataclass(inner):
            found.update(leaves(inner, f"{prefix}{f.name}."))
        else:
            found[prefix + f.name] = inner
    return found


# another value for each setting of a comparison
CHANGED: dict[str, Any] = {
    "methods": ("group",),
    "num_train": 100,
    "num_test": 50,
    "noise": 12.0,
    "num_samples": 7,
    "bank_rows": 50,
    "draws_curve": (1, 2),
    "learning_rates": (0.1, 0.2),
    "num_validation": 7,
    "arviz_samples": 3,
    "timed_predictions": 2,
    "training.epochs": 2,
    "training.batch_size": 32,
    "training.lr": 0.5,
    "training.weight_decay": 0.1,
    "training.augment": True,
    "training.precision": "bf16-mixed",
}


def test_each_setting_of_a_comparison_counts() -> None:
    # data and network have one name each in this list's smallest version
    assert set(leaves(Settings())) == {*CHANGED, "seeds", "data", "network"}
    base = make_study("digits", quick=True)
    found = {base.fingerprint()}
    for name, value in CHANGED.items():
        inner, _, leaf = name.rpartition(".")
        settings = base.settings
        if inner:
            value = replace(getattr(settings, inner), **{leaf: value})
        found.add(replace(base, settings=replace(settings, **{inner or leaf: value})).fingerprint())
    assert len(found) == 1 + len(CHANGED)


def test_data_and_network_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyronorm import datasets
    from pyronorm.study import architectures

    digits = datasets.DATASETS["digits"]
    monkeypatch.setattr(datasets, "DATASETS", {"digits": digits, "other": digits})
    network = architectures.NETWORKS["small-conv"]
    monkeypatch.setattr(architectures, "NETWORKS", {"small-conv": network, "other": network})
    studies = [make_study("digits", **{k: "other"}) for k in ("data", "network")]
    assert len({study.fingerprint() for study in [make_study("digits"), *studies]}) == 3


def test_the_configuration_is_what_json_gives_back() -> None:
    study: Study = fake(size=3, trouble=(("a/x", 0, "error"),))
    configuration = study.configuration()
    assert json.loads(json.dumps(configuration)) == configuration
    assert configuration["study"] == "fake"
    assert configuration["settings"]["trouble"] == [["a/x", 0, "error"]]
    assert configuration["settings"]["inner"] == {"steps": 3, "rates": [0.1, 0.2]}


def test_the_fingerprint_is_the_same_in_every_process_and_version() -> None:
    assert fake(size=2).fingerprint() == "e95672fd"


def test_the_question_is_not_configuration() -> None:
    study = make_study("digits", quick=True)
    asked = replace(study, question="Why?")
    assert asked.fingerprint() == study.fingerprint()
    assert (
        make_study("digits", quick=True, training=Training()).fingerprint() == study.fingerprint()
    )
