"""Data sets against scikit-learn's own copy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.datasets import load_digits as bundled

from pyronorm.datasets import (
    ImageData,
    Split,
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
)
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


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.2])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match="test_share"):
        load_digits(0, share)


@pytest.mark.parametrize(
    ("load", "source", "shape", "classes"),
    [
        (load_breast_cancer, sklearn.datasets.load_breast_cancer, (569, 30), 2),
        (load_wine, sklearn.datasets.load_wine, (178, 13), 3),
        (load_iris, sklearn.datasets.load_iris, (150, 4), 3),
        (load_diabetes, lambda: sklearn.datasets.load_diabetes(scaled=False), (442, 10), None),
    ],
)
def test_tables_are_those_of_scikit_learn(load, source, shape, classes) -> None:
    table, expected = load(), source()
    assert table.x.shape == shape
    assert np.array_equal(table.x.numpy(), expected.data)
    assert np.array_equal(table.y.numpy(), expected.target)
    assert table.num_classes == classes
    assert list(table.feature_names) == list(expected.feature_names)
    assert table.y.dtype == (torch.float64 if classes is None else torch.int64)
