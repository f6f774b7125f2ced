"""CIFAR in both layouts, on small files made by hand."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyronorm.datasets import load_cifar10, load_cifar100
from pyronorm.datasets.cifar import CIFAR10, CIFAR100, CifarSource
from pyronorm.datasets.files import PublishedFile
from pyronorm.errors import DataError, MissingDataError
from tests.datasets.builders import byte_images, cifar_binary, python2_pickle, write

TRAIN, TEST = 3, 2
CLASSES = [[k, (k + 3) % 10, 9] for k in range(5)]
SMALL10 = replace(CIFAR10, count=(TRAIN, TEST))
SMALL100 = replace(CIFAR100, count=(TRAIN, TEST))


def write_binary(folder: Path) -> np.ndarray:
    for k in range(5):
        content = cifar_binary(byte_images(TRAIN, k), CLASSES[k])
        write(folder / f"data_batch_{k + 1}.bin", content)
    write(folder / "test_batch.bin", cifar_binary(byte_images(TEST, 9), [7, 0]))
    return np.concatenate([byte_images(TRAIN, k) for k in range(5)])


def write_python(folder: Path, **changes: bytes) -> CifarSource:
    """Write the pickles; the source whose checksums are theirs."""
    files = {
        f"data_batch_{k + 1}": python2_pickle(byte_images(TRAIN, k), CLASSES[k]) for k in range(5)
    }
    files["test_batch"] = python2_pickle(byte_images(TEST, 9), [7, 0])
    files.update(changes)
    published = [
        PublishedFile(name, write(folder / name, content)) for name, content in files.items()
    ]
    layout = replace(CIFAR10.python, train=tuple(published[:5]), test=published[5])
    return replace(SMALL10, python=layout)


def check(data, pixels: np.ndarray) -> None:
    assert data.train.x.shape == (5 * TRAIN, 3, 32, 32)
    assert data.train.x.dtype == torch.float32
    expected = pixels.reshape(-1, 3, 32, 32).astype(np.float32) / 255
    assert np.array_equal(data.train.x.numpy(), expected)
    assert data.train.y.tolist() == [label for batch in CLASSES for label in batch]
    assert np.array_equal(
        data.test.x.flatten(1).numpy(), byte_images(TEST, 9).astype(np.float32) / 255
    )
    assert data.test.y.tolist() == [7, 0]
    assert (data.name, data.num_classes, data.note) == ("cifar10", 10, "")
    assert (data.class_names[7], data.class_names[0]) == ("horse", "airplane")


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "cifar10"])
def test_the_binary_layout(tmp_path, folder):
    pixels = write_binary(tmp_path / folder)
    check(SMALL10.read(tmp_path), pixels)


def test_the_bytes_of_a_record(tmp_path):
    """Label, then the red plane row by row, then green, then blue."""
    write_binary(tmp_path / "cifar10")
    image = bytearray(3072)
    image[0 * 1024 + 2 * 32 + 5] = 51  # red, row 2, column 5
    image[1 * 1024 + 0 * 32 + 31] = 102  # green, row 0, column 31
    image[2 * 1024 + 31 * 32 + 0] = 255  # blue, row 31, column 0
    record = b"\x06" + bytes(image)
    write(tmp_path / "cifar10" / "test_batch.bin", record * 2)
    x, y = SMALL10.read(tmp_path).test
    assert y.tolist() == [6, 6]
    assert x[1].nonzero().tolist() == [[0, 2, 5], [1, 0, 31], [2, 31, 0]]
    assert x[1][x[1] > 0].tolist() == pytest.approx([0.2, 0.4, 1.0])


def test_the_python_layout_and_its_checksums(tmp_path):
    source = write_python(tmp_path / "cifar-10-batches-py")
    pixels = np.concatenate([byte_images(TRAIN, k) for k in range(5)])
    check(source.read(tmp_path), pixels)
    with pytest.raises(DataError, match=r"data_batch_1: damaged.*expected MD5 c99cafc15"):
        SMALL10.read(tmp_path)  # the published checksums are not those of these files


def test_the_binary_layout_comes_first(tmp_path):
    write_python(tmp_path / "cifar-10-batches-py")
    pixels = write_binary(tmp_path / "cifar10")
    check(SMALL10.read(tmp_path), pixels)


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    coarse, fine = [19, 0, 4], [99, 1, 33]
    write(tmp_path / "cifar-100-binary" / "train.bin", cifar_binary(byte_images(3), coarse, fine))
    write(
        tmp_path / "cifar-100-binary" / "test.bin",
        cifar_binary(byte_images(2, 1), [5, 6], [50, 60]),
    )
    data = SMALL100.read(tmp_path)
    assert data.train.y.tolist() == fine
    assert data.test.y.tolist() == [50, 60]
    assert np.array_equal((data.train.x.flatten(1) * 255).round().byte().numpy(), byte_images(3))
    assert data.num_classes == 100


def test_the_python_layout_of_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    contents = {
        "train": python2_pickle(byte_images(3), [99, 1, 33], b"fine_labels"),
        "test": python2_pickle(byte_images(2, 1), [50, 60], b"fine_labels"),
    }
    train, test = (PublishedFile(n, write(folder / n, c)) for n, c in contents.items())
    source = replace(SMALL100, python=replace(CIFAR100.python, train=(train,), test=test))
    data = source.read(tmp_path)
    assert data.train.y.tolist() == [99, 1, 33]
    assert data.test.y.tolist() == [50, 60]


def test_an_incomplete_copy_has_to_be_allowed(tmp_path):
    folder = tmp_path / "cifar10"
    write_binary(folder)
    write(folder / "data_batch_2.bin", cifar_binary(byte_images(1, 1), [4]))
    write(folder / "test_batch.bin", cifar_binary(byte_images(1, 9), [7]))
    with pytest.raises(DataError) as error:
        SMALL10.read(tmp_path)
    for part in (
        "13 of 15",
        "1 of 2",
        "data_batch_2.bin: 1 of 3",
        "allow_incomplete",
        "cs.toronto.edu",
    ):
        assert part in str(error.value)
    assert "data_batch_1.bin" not in str(error.value)
    data = SMALL10.read(tmp_path, allow_incomplete=True)
    assert data.note == "incomplete copy: 13 of 15 training images, 1 of 2 test images"
    assert data.train.y.tolist() == [*CLASSES[0], 4, *CLASSES[2], *CLASSES[3], *CLASSES[4]]
    assert len(data.test.y) == 1


def test_a_file_with_more_images_is_refused_before_it_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "cifar10"
    write_binary(folder)
    with (folder / "data_batch_2.bin").open("r+b") as file:
        file.truncate(10**10)  # sparse: it takes no space
    with pytest.raises(DataError, match=r"data_batch_2\.bin: expected 3 images, found 3,254,149"):
        SMALL10.read(tmp_path)


def test_an_empty_or_missing_file_is_not_an_incomplete_copy(tmp_path):
    folder = tmp_path / "cifar10"
    write_binary(folder)
    write(folder / "data_batch_4.bin", b"")
    with pytest.raises(DataError, match=r"data_batch_4\.bin: 0 of 3"):
        SMALL10.read(tmp_path, allow_incomplete=True)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(
        MissingDataError, match=r"no file data_batch_4\.bin in .*cifar10\. Get it from"
    ):
        SMALL10.read(tmp_path, allow_incomplete=True)


def test_a_file_cut_within_an_image(tmp_path):
    folder = tmp_path / "cifar10"
    write_binary(folder)
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"data_batch_3\.bin: truncated: .*3,073 bytes, found 9,218"
    ):
        SMALL10.read(tmp_path, allow_incomplete=True)


def test_too_many_images(tmp_path):
    folder = tmp_path / "cifar10"
    write_binary(folder)
    write(folder / "test_batch.bin", cifar_binary(byte_images(3, 9), [7, 0, 1]))
    with pytest.raises(DataError, match=r"test_batch\.bin: expected 2 images, found 3"):
        SMALL10.read(tmp_path, allow_incomplete=True)


def test_a_label_out_of_range(tmp_path):
    folder = tmp_path / "cifar10"
    write_binary(folder)
    write(folder / "data_batch_5.bin", cifar_binary(byte_images(3, 4), [1, 10, 2]))
    with pytest.raises(DataError, match=r"data_batch_5\.bin: .* 0 to 9, found 10 at image 1"):
        SMALL10.read(tmp_path)
    negative = pickle.dumps({"data": byte_images(2, 9), "labels": [0, -1]}, 4)
    source = write_python(tmp_path / "py" / "cifar10", test_batch=negative)
    with pytest.raises(DataError, match=r"test_batch: .* found -1 at image 1"):
        source.read(tmp_path / "py")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": [0, 1]}, "no entry 'data'; it has labels"),
        ({"data": byte_images(2)}, "no entry 'labels'"),
        ({"data": byte_images(2, size=5), "labels": [0, 1]}, r"data of shape \(images, 3072\)"),
        ({"data": [1], "labels": [0, 1]}, r"data of shape \(images, 3072\)"),
        ({"data": byte_images(2), "labels": [0]}, "2 images and 1 labels"),
        ({"data": byte_images(2), "labels": [0, 1.5]}, "labels to be a list of integers"),
        ({"data": byte_images(2), "labels": b"01"}, "labels to be a list of integers"),
    ],
)
def test_entries_of_the_wrong_kind(tmp_path, content, message):
    source = write_python(tmp_path / "cifar10", test_batch=pickle.dumps(content, 4))
    with pytest.raises(DataError, match=f"test_batch: .*{message}"):
        source.read(tmp_path)


@pytest.mark.parametrize("load", [load_cifar10, load_cifar100])
def test_a_missing_set(tmp_path, load):
    with pytest.raises(
        MissingDataError, match=r"\.bin in .*-bin.*, .*-py.*cs\.toronto\.edu.*download"
    ):
        load(tmp_path)


def test_a_downloaded_archive_is_unpacked_and_nothing_else_of_it(tmp_path, monkeypatch):
    """Members other than the files of the set, and their paths, do not matter."""
    write_binary(tmp_path / "source")
    archive = tmp_path / "root" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted((tmp_path / "source").iterdir()):
            tar.add(path, f"../../cifar-10-batches-bin/{path.name}")
        extra = tarfile.TarInfo("../../evil")
        extra.size = 4
        tar.addfile(extra, io.BytesIO(b"evil"))
    kept = shutil.copy(archive, tmp_path / "kept")
    asked = []

    def fetched(file, folder, *, progress):
        asked.append((file, folder, progress))
        return archive

    monkeypatch.setattr("pyronorm.datasets.cifar.fetch", fetched)
    data = SMALL10.read(tmp_path / "root", get=True, progress=False)
    assert len(data.train.y) == 15
    assert asked == [(CIFAR10.archive, tmp_path / "root", False)]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["cifar-10-batches-bin"]
    assert len(list((tmp_path / "root" / "cifar-10-batches-bin").iterdir())) == 6
    assert not list(tmp_path.rglob("evil"))
    SMALL10.read(tmp_path / "root", get=True)
    assert len(asked) == 1  # what is there is not asked for again
    (tmp_path / "root" / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    shutil.copy(kept, archive)
    assert len(SMALL10.read(tmp_path / "root", get=True).train.y) == 15
    assert len(asked) == 2


def test_an_archive_without_a_file(tmp_path, monkeypatch):
    archive = tmp_path / "a.tar.gz"
    tarfile.open(archive, "w:gz").close()
    monkeypatch.setattr("pyronorm.datasets.cifar.fetch", lambda *a, **k: archive)
    with pytest.raises(DataError, match=r"a\.tar\.gz: no file data_batch_1\.bin in the archive"):
        SMALL10.read(tmp_path / "root", get=True)


def test_published_numbers():
    assert CIFAR10.count == (10_000, 10_000)
    assert len(CIFAR10.binary.train) == len(CIFAR10.python.train) == 5
    assert CIFAR100.count == (50_000, 10_000)
    assert len(CIFAR10.class_names) == 10
    sums = [f.md5 for s in (CIFAR10, CIFAR100) for f in (*s.python.train, s.python.test, s.archive)]
    assert len(set(sums)) == 10
    assert all(len(md5) == 32 for md5 in sums)
