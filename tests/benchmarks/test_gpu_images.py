"""CIFAR-10 as bytes, whatever its form and wherever its parts lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.gpu import images
from pyronorm.errors import DataError, MissingDataError
from tests.benchmarks.test_gpu import folders, write_sheet
from tests.datasets.builders import byte_images, cifar_binary

__all__ = ["folders"]


def test_forms_agree_and_come_in_order(folders):
    train, test, note = images.read_cifar10(folders)
    pixels = np.concatenate([byte_images(70, 0), byte_images(60, 2)])
    assert train.x.dtype == torch.uint8
    np.testing.assert_array_equal(train.x.flatten(1).numpy(), pixels)
    np.testing.assert_array_equal(train.y[70:].numpy(), np.arange(60) % 10)
    np.testing.assert_array_equal(test.x.flatten(1).numpy(), byte_images(40, 1))
    assert note == (
        "CIFAR-10, 130 training and 40 test images, an incomplete copy (complete: 50,000 and 10,000)"
    )


def test_the_first_folder_wins(folders):
    (folders[0] / "test_batch.bin").write_bytes(cifar_binary(byte_images(7, 3), [1] * 7))
    _, test, _ = images.read_cifar10(folders)
    assert test.y.tolist() == [1] * 7


def test_the_folder_of_all_data_sets(folders, tmp_path):
    folders[0].rename(tmp_path / "cifar-10-batches-bin")
    train, test, _ = images.read_cifar10([tmp_path, folders[1]])
    assert (len(train), len(test)) == (130, 40)


def test_missing_parts(folders):
    with pytest.raises(MissingDataError, match="no test images in .*first"):
        images.read_cifar10(folders[:1])


@pytest.mark.parametrize("count", [50, 101, 0])
def test_a_sheet_that_does_not_fit_its_classes(tmp_path, count):
    write_sheet(tmp_path / "train-1.webp", byte_images(70), np.zeros(count))
    with pytest.raises(DataError, match="train-1.webp: expected a sheet 1600 pixels wide"):
        images.read_cifar10([tmp_path])


def test_classes_above_nine(tmp_path):
    write_sheet(tmp_path / "train-1.webp", byte_images(70), np.full(70, 10))
    with pytest.raises(DataError, match="classes from 0 to 9"):
        images.read_cifar10([tmp_path])


def test_standardize_by_the_exact_moments():
    train, _, _ = images.synthetic(40, 8)
    x = train.x.double()
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)
    expected = (x - mean[:, None, None]) / std[:, None, None]
    found = images.Standardize(train)(train.x)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_full_batches_alone():
    train, _, _ = images.synthetic(40, 8)
    standardize = images.Standardize(train)
    found = list(images.batches(train, standardize, 16, 5))
    assert [len(batch) for batch in found] == [16, 16]
    torch.testing.assert_close(torch.cat(found), standardize(train.x[:32]))
    assert len(list(images.batches(train, standardize, 16, 1))) == 1
