from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyronorm.datasets import ImageData, Split
from pyronorm.errors import DataError, OptionError, ShapeError


def made(num_train: int = 30, num_test: int = 12, seed: int = 0) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Split(
            torch.rand(n, 2, 3, 5, generator=generator) * torch.tensor([1.0, 0.3])[:, None, None],
            torch.arange(n) % 3,
        )
        for n in (num_train, num_test)
    ]
    return ImageData("made", *parts, 3, ("a", "b", "c"), "a note")


def test_standardized_by_the_training_part():
    data = made()
    x = data.train.x.double()
    mean = torch.stack([x[:, c].mean() for c in range(2)])[:, None, None]
    std = torch.stack([x[:, c].std(correction=0) for c in range(2)])[:, None, None]
    new = data.standardized()
    for part in ("train", "test"):
        old = getattr(data, part)
        torch.testing.assert_close(getattr(new, part).x, ((old.x - mean) / std).float())
        assert torch.equal(getattr(new, part).y, old.y)
    assert new.train.x.dtype == torch.float32
    assert replace(new, train=data.train, test=data.test) == data  # the rest is kept


def test_outliers_are_standardized_as_the_network_s_own_inputs():
    inside, outside = made(seed=1), made(seed=2)
    outside = replace(outside, train=Split(outside.train.x[:0], outside.train.y[:0]))
    # The same images, in the place of the test part of the network's own set.
    expected = replace(inside, test=outside.test).standardized().test.x
    assert torch.equal(outside.standardized(inside.train).test.x, expected)
    with pytest.raises(DataError, match=r"made: no training images .*reference="):
        outside.standardized()
    with pytest.raises(ShapeError, match="made: 2 channels, the reference has 1"):
        outside.standardized(Split(inside.train.x[:, :1], inside.train.y))


def test_a_constant_channel():
    data = made()
    data.train.x[:, 1] = 0.5
    with pytest.raises(DataError, match="made: a channel has the same value"):
        data.standardized()


def rows(split: Split) -> set[tuple[float, ...]]:
    return {(*x.flatten().tolist(), int(y)) for x, y in zip(split.x, split.y, strict=True)}


def test_subset_is_stratified_and_of_the_data():
    data = made()
    part = data.subset(9, 6, seed=4)
    assert torch.bincount(part.train.y).tolist() == [3, 3, 3]
    assert torch.bincount(part.test.y).tolist() == [2, 2, 2]
    assert rows(part.train) < rows(data.train)
    assert rows(part.test) < rows(data.test)
    assert rows(data.subset(9, 6, seed=5).train) != rows(part.train)
    assert (part.name, part.num_classes, part.note) == (data.name, 3, "a note")
    assert data.subset(num_train=9, seed=4).test.x is data.test.x
    assert rows(data.subset(num_train=9, seed=4).train) == rows(part.train)
    assert data.subset() == data


def test_split_off():
    data = made()
    rest, validation = data.split_off(12, seed=1)
    assert torch.bincount(validation.y).tolist() == [4, 4, 4]
    assert len(rest.train.y) == 18
    assert rows(rest.train) | rows(validation) == rows(data.train)
    assert not rows(rest.train) & rows(validation)
    assert rest.test.x is data.test.x


@pytest.mark.parametrize("num", [0, -1, 31])
def test_impossible_numbers(num):
    data = made()
    with pytest.raises(OptionError, match="num_train must be (between 1 and 30|at least 1)"):
        data.subset(num)
    with pytest.raises(OptionError, match="num_test must be (between 1 and 12|at least 1)"):
        data.subset(None, num)
    with pytest.raises(OptionError, match="num_validation"):
        data.split_off(num)
    with pytest.raises(OptionError, match="leaves no training images"):
        data.split_off(30)


def test_parts_that_do_not_fit(unchecked):
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])
    good = Split(x, y)
    for bad in (Split(x, y[:3]), Split(x[:, 0], y)):
        with pytest.raises(ShapeError, match="d, test: expected images"):
            ImageData("d", good, bad, 3)
    with pytest.raises(
        ShapeError, match=r"d: training images \(1, 2, 2\), test images \(1, 2, 1\)"
    ):
        ImageData("d", good, Split(x[..., :1], y), 3)
    with pytest.raises(DataError, match="d, train: expected classes 0 to 1, found 0 to 2"):
        ImageData("d", good, good, 2)
    with pytest.raises(DataError, match="d, train: expected classes 0 to 2, found -1 to 1"):
        ImageData("d", Split(x, y - 1), good, 3)
