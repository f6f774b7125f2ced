"""Studies by name, and back from their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pyronorm.errors import DataError, OptionError
from pyronorm.study import (
    STUDIES,
    Entry,
    Folder,
    Settings,
    Study,
    Training,
    catalog,
    make_study,
    restore_study,
)
from tests.study.fakes import Fake, FakeSettings, Inner, fake


@pytest.fixture
def with_fake(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Entry]:
    entries = {
        **STUDIES,
        "fake": Entry(Fake, FakeSettings(seeds=(0,)), FakeSettings(size=9), "a fake"),
    }
    monkeypatch.setattr(catalog, "STUDIES", entries)
    return entries


@pytest.mark.parametrize("name", STUDIES)
def test_sizes(name: str) -> None:
    entry = STUDIES[name]
    for quick, settings in ((True, entry.quick), (False, entry.full)):
        study = make_study(name, quick=quick)
        assert study.name == name
        assert study.settings == settings
    assert make_study(name).settings == entry.full
    assert entry.quick != entry.full
    assert entry.description
    assert "\n" not in entry.description


def test_changes() -> None:
    study = make_study("digits", quick=True, seeds=(4, 2), methods=None, num_samples=5)
    assert study.settings == replace(Settings(), seeds=(4, 2), num_samples=5)


def test_an_unknown_study_lists_the_choices(with_fake: Mapping[str, Entry]) -> None:
    with pytest.raises(OptionError) as error:
        make_study("digit")
    message = str(error.value)
    assert "no study 'digit'. Did you mean 'digits'?" in message
    assert message.endswith(f"Choose from {', '.join(with_fake)}.")
    with pytest.raises(OptionError) as error:
        make_study("qqq")
    assert "Did you mean" not in str(error.value)


def test_an_unknown_setting_lists_the_choices() -> None:
    with pytest.raises(OptionError, match=r"digits has no setting 'epoch'; it has data, network, "):
        make_study("digits", epoch=3)


def test_settings_are_checked() -> None:
    with pytest.raises(OptionError, match="num_samples"):
        make_study("digits", num_samples=0)


# back from a folder


def through_a_folder(study: Study, path: Path) -> Study:
    Folder(path).start(study, "")
    return restore_study(Folder(path).record)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", STUDIES)
def test_restored_as_it_was(name: str, quick: bool, tmp_path: Path) -> None:
    study = make_study(name, quick=quick, seeds=(8, 3))
    assert through_a_folder(study, tmp_path) == study


def test_restored_with_settings_of_every_kind(
    with_fake: Mapping[str, Entry], tmp_path: Path
) -> None:
    study = fake(
        methods=("x",),
        factor=math.inf,
        size=4,
        inner=Inner(7, (1.5, -math.inf)),
        trouble=(("a/x", 0, "error"), ("b", 1, "exit")),
    )
    back = through_a_folder(study, tmp_path)
    assert back == study
    assert back.fingerprint() == study.fingerprint()
    assert isinstance(back.settings.trouble[1], tuple)


def test_a_comparison_with_settings_of_its_own(tmp_path: Path) -> None:
    study = make_study(
        "digits",
        training=Training(3, 20, 1e-2, 0.1, True, "64-true"),
        methods=("all", "batch/point"),
        num_train=100,
        noise=20.5,
    )
    assert through_a_folder(study, tmp_path) == study


@pytest.mark.parametrize("name", ["gone", "", None])
def test_a_study_that_this_version_does_not_know(name: str | None) -> None:
    record = make_study("digits").configuration()
    with pytest.raises(OptionError, match="no study"):
        restore_study({**record, "study": name})


def damaged(**changes: Any) -> dict[str, Any]:
    study = make_study("digits")
    record = {**study.configuration(), "fingerprint": study.fingerprint()}
    record = json.loads(json.dumps(record))
    for name, value in changes.items():
        *path, leaf = name.split("__")
        place = record["settings"]
        for part in path:
            place = place[part]
        if value is None:  # an older version, before there was this setting
            del place[leaf]
            record["fingerprint"] = "01d01d01"
        else:
            place[leaf] = value
    return record


@pytest.mark.parametrize(
    "record",
    [
        damaged(new=3),
        damaged(training__new=3),
        damaged(bank_rows=None),
        damaged(training__lr=None),
        damaged(training=None),
        damaged(num_samples=33),
        damaged(seeds=3),
        damaged(seeds="3"),
        damaged(training=3),
        damaged(num_samples="many"),
    ],
    ids=lambda record: json.dumps(record["settings"])[-30:],
)
def test_settings_of_another_version(record: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(DataError, match=r"settings of digits in study\.json are not those of this"):
        restore_study(record)


def test_methods_that_this_version_does_not_know() -> None:
    with pytest.raises(DataError, match="no method 'old/way'"):
        restore_study(damaged(methods=["old/way"]))


def test_an_optional_dataclass_among_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Optional_("optional", OptionalSettings(inner=Inner(4)))
    entry = Entry(Optional_, OptionalSettings(), OptionalSettings(), "")
    monkeypatch.setattr(catalog, "STUDIES", {"optional": entry})
    record = {**study.configuration(), "fingerprint": study.fingerprint()}
    assert restore_study(record) == study


@dataclass(frozen=True)
class OptionalSettings:
    seeds: tuple[int, ...] = (0,)
    inner: Inner | None = None


@dataclass(frozen=True)
class Optional_(Fake):  # noqa: N801
    settings: Any = field(default_factory=OptionalSettings)
