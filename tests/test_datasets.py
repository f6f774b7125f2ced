"""Data sets against scikit-learn's own copy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as bundled

from pyronorm.datasets import DATASETS, ImageData, Split, load, load_digits
from pyronorm.errors import OptionError


def examples(*splits: Split) -> Counter[tuple[float, ...]]:
    """How often each (class, pixels in sixteenths) occurs."""
    rows = [
        torch.cat([split.y[:, None].float(), 16 * split.x.flatten(1)], 1).tolist()
        for split in splits
    ]
    return Counter(tuple(row) for part in rows for row in part)


@pytest.mark.parametrize("seed", [0, 4])
def test_the_split_covers_every_image_once(seed: int) -> None:
    data = load_digits(seed)
    source = bundled()
    original = Counter(
        (float(target), *image.ravel().tolist())
        for image, target in zip(source.images, source.target, strict=True)
    )
    assert examples(data.train, data.test) == original


def test_sizes_types_and_ranges() -> None:
    data = load_digits(1)
    assert isinstance(data, ImageData)
    assert (data.name, data.num_classes) == ("digits", 10)
    # 1,797 images, a fifth of them (rounded up) held out.
    assert data.train.x.shape == (1437, 1, 8, 8)
    assert data.test.x.shape == (360, 1, 8, 8)
    for split in (data.train, data.test):
        assert isinstance(split, Split)
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.long
        assert split.y.shape == split.x.shape[:1]
        assert (float(split.x.min()), float(split.x.max())) == (0.0, 1.0)
        assert split.y.unique().tolist() == list(range(10))


@pytest.mark.parametrize("share", [0.2, 0.35])
def test_the_split_is_stratified(share: float) -> None:
    data = load_digits(2, share)
    total = np.bincount(bundled().target)
    held_out = torch.bincount(data.test.y).numpy()
    assert len(data.test.y) == -(-1797 * share // 1)  # rounded up
    assert np.abs(held_out - share * total).max() < 1


def test_the_seed_decides_the_split() -> None:
    first, again, other = load_digits(3), load_digits(3), load_digits(4)
    for part in ("train", "test"):
        mine, same, others = (getattr(data, part) for data in (first, again, other))
        assert torch.equal(mine.x, same.x)
        assert torch.equal(mine.y, same.y)
        assert examples(mine) != examples(others)


def test_the_split_does_not_touch_the_generators() -> None:
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002  the global generator is the point
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    load_digits(5)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_neighbouring_classes_are_mixed() -> None:
    # Not sorted by class: with 10 classes about a tenth of neighbours agree.
    y = load_digits(0).train.y
    assert 0.05 < float((y[1:] == y[:-1]).float().mean()) < 0.15


def test_load_by_name() -> None:
    assert set(DATASETS) == {"digits"}
    found, expected = load("digits", 6), load_digits(6)
    assert found.name == "digits"
    assert torch.equal(found.train.x, expected.train.x)
    assert torch.equal(found.test.y, expected.test.y)
    assert torch.equal(load("digits").test.y, load_digits(0).test.y)


@pytest.mark.parametrize("name", ["mnist", "Digits", ""])
def test_an_unknown_name_lists_the_choices(name: str) -> None:
    with pytest.raises(OptionError) as error:
        load(name)
    assert repr(name) in str(error.value)
    for choice in DATASETS:
        assert choice in str(error.value)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.2])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match="test_share"):
        load_digits(0, share)
