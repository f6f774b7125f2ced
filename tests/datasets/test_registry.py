from __future__ import annotations

import pytest
import torch

from pyronorm.datasets import (
    DATASETS,
    OUTLIERS,
    TABLES,
    load,
    load_diabetes,
    load_digits,
    load_table,
    registry,
)
from pyronorm.datasets.files import DATA_ROOT_VARIABLE
from pyronorm.datasets.uci import UCI
from pyronorm.errors import MissingDataError, OptionError


def test_load_by_name():
    found, expected = load("digits", 6), load_digits(6)
    assert found.name == "digits"
    assert torch.equal(found.train.x, expected.train.x)
    assert torch.equal(found.test.y, expected.test.y)
    assert torch.equal(load("digits").test.y, load_digits(0).test.y)


def test_the_names():
    assert list(DATASETS) == ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100"]
    assert list(OUTLIERS) == ["notmnist"]
    assert list(TABLES) == ["breast_cancer", "wine", "iris", "diabetes", *UCI]


def test_tables_by_name():
    found, expected = load_table("diabetes", 4, test_share=0.2), load_diabetes().split(4, 0.2)
    assert torch.equal(found.test.x, expected.test.x)
    assert found.y_mean == expected.y_mean
    assert len(load_table("wine").test.y) == 18


@pytest.mark.parametrize("name", [n for n in (*DATASETS, *OUTLIERS) if n != "digits"])
def test_every_set_is_looked_for_under_the_data_root(name, tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=f"{name}: no file .* in {tmp_path}"):
        load(name, data_root=tmp_path)
    with pytest.raises(MissingDataError, match=f"{name}: no file .* in {tmp_path}"):
        load(name, data_root=tmp_path, allow_incomplete=True)
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(MissingDataError, match=f"{name}: no file .* in {tmp_path}"):
        load(name)


@pytest.mark.parametrize("name", UCI)
def test_every_table_is_looked_for_under_the_data_root(name, tmp_path):
    with pytest.raises(MissingDataError, match=f"{name}: no file .* in {tmp_path}"):
        load_table(name, data_root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "notmnist"])
def test_options_reach_the_reader(name, monkeypatch, tmp_path):
    seen = []
    target = OUTLIERS if name in OUTLIERS else DATASETS
    monkeypatch.setitem(
        target, name, lambda root, **options: seen.append((root, options)) or DIGITS
    )
    registry.load(name, 1, tmp_path, download=True, allow_incomplete=True)
    extra = {"allow_incomplete": True} if name == "cifar10" else {}
    assert seen == [(tmp_path, {"download": True, **extra})]


DIGITS = load_digits()


@pytest.mark.parametrize(
    ("function", "name", "near"),
    [
        (load, "Digits", "digits"),
        (load, "fashion_mnist", "fashion-mnist"),
        (load, "cifar-10", "cifar10"),
        (load, "MNIST", "mnist"),
        (load_table, "boston-housing", "bostonHousing"),
        (load_table, "breast-cancer", "breast_cancer"),
        (load_table, "wine-quality", "wine-quality-red"),
    ],
)
def test_an_unknown_name_lists_the_choices_and_a_near_match(function, name, near):
    with pytest.raises(OptionError, match=rf"Did you mean {near!r}\?") as error:
        function(name)
    assert repr(name) in str(error.value)
    for choice in {**DATASETS, **OUTLIERS} if function is load else TABLES:
        assert choice in str(error.value)


@pytest.mark.parametrize("name", ["", "imagenet-21k"])
def test_a_name_far_from_all(name):
    for function in (load, load_table):
        with pytest.raises(OptionError) as error:
            function(name)
        assert "Did you mean" not in str(error.value)


def test_images_and_tables_are_told_apart():
    with pytest.raises(OptionError, match="'yacht' is a table: load it with load_table"):
        load("yacht")
    for name in ("mnist", "notmnist"):
        with pytest.raises(OptionError, match=f"'{name}' is a set of images: load it with load"):
            load_table(name)
