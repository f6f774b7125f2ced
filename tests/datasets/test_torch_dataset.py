from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pyronorm.datasets import from_dataset
from pyronorm.errors import DataError, ShapeError


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


X, Y = torch.rand(5, 2, 3, 4), torch.tensor([0, 3, 1, 1, 2])
GOOD = TensorDataset(X, Y)


def test_reads_both_parts():
    test = Items(*((x.double(), int(y)) for x, y in zip(X.flip(0)[:3], Y.flip(0)[:3], strict=True)))
    data = from_dataset(GOOD, test, "mine")
    assert torch.equal(data.train.x, X)
    assert torch.equal(data.train.y, Y)
    assert torch.equal(data.test.x, X.flip(0)[:3])
    assert data.test.x.dtype == torch.float32
    assert data.test.y.tolist() == [2, 1, 1]
    assert (data.name, data.num_classes) == ("mine", 4)
    assert from_dataset(GOOD, GOOD, num_classes=7).num_classes == 7


def test_the_largest_class_may_be_in_the_test_part():
    assert from_dataset(TensorDataset(X, Y % 2), GOOD).num_classes == 4


def test_bytes_become_shares():
    pixels = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    data = from_dataset(Items((pixels, np.int64(1)), [pixels, torch.tensor(0)]), Items((pixels, 0)))
    assert data.train.x[1].tolist() == [[[0.0, pytest.approx(0.2), 1.0]]]
    assert data.train.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (X[0], DataError, r"example 1: expected a pair \(image, class\), got Tensor"),
        ((X[0], 1, 2), DataError, "example 1: expected a pair"),
        ((X[0].numpy(), 1), DataError, r"as a tensor, got ndarray.*ToTensor"),
        ((X[0, 0], 1), ShapeError, r"an image \(channel, height, width\), got \(3, 4\)"),
        ((X[0].long(), 1), DataError, "floats or bytes, got torch.int64"),
        ((X[0], 1.0), DataError, "a whole number as class, got 1.0"),
        ((X[0], torch.tensor([0.0, 1.0])), DataError, "a whole number as class"),
        ((X[0, :1], 1), ShapeError, r"expected shape \(2, 3, 4\) as in example 0, got \(1, 3, 4\)"),
    ],
)
def test_bad_examples_are_named(item, error, message):
    with pytest.raises(error, match=rf"mine, train, example 1: .*{message.split(': ')[-1]}"):
        from_dataset(Items((X[0], 0), item), GOOD, "mine")


def test_bad_data_sets():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(GOOD)

    with pytest.raises(DataError, match="mine, test: needs a Dataset with a length"):
        from_dataset(GOOD, Stream(), "mine")
    with pytest.raises(DataError, match="mine, train: the Dataset is empty"):
        from_dataset(Items(), GOOD, "mine")
    with pytest.raises(DataError, match="mine, train: a pixel is not finite"):
        from_dataset(TensorDataset(X / 0, Y), GOOD, "mine")
    with pytest.raises(DataError, match="mine, test: expected classes 0 to 2, found 0 to 3"):
        from_dataset(Items((X[0], 0)), GOOD, "mine", num_classes=3)
    with pytest.raises(DataError, match="mine, train: expected classes 0 to 3, found -1"):
        from_dataset(TensorDataset(X, Y - 1), GOOD, "mine", num_classes=4)
