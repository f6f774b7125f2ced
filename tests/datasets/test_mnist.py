"""Sets in the format of MNIST, on small ones made by hand; and the published facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyronorm.datasets import load_mnist, load_notmnist
from pyronorm.datasets.files import DATA_ROOT_VARIABLE, PublishedFile
from pyronorm.datasets.mnist import FASHION_MNIST, MNIST, NOTMNIST, IdxPart, IdxSource
from pyronorm.errors import DataError, MissingDataError
from tests.datasets.builders import idx, write

COUNTS = {"train": 5, "t10k": 4}
IMAGES = {
    name: np.random.default_rng(n).integers(0, 256, (n, 2, 3), dtype=np.uint8)
    for name, n in COUNTS.items()
}
LABELS = {"train": np.array([2, 0, 1, 2, 0]), "t10k": np.array([1, 1, 0, 2])}


def write_set(folder: Path, suffix: str = ".gz") -> dict[str, str]:
    """Write the made-up set and return the checksums."""
    sums = {}
    for part in COUNTS:
        for kind, values in (("images", IMAGES[part]), ("labels", LABELS[part])):
            name = f"{part}-{kind}{suffix}"
            sums[name] = write(folder / name, idx(values))
    return sums


def made_source(folder: Path, base: str = "http://127.0.0.1/", outliers: bool = False) -> IdxSource:
    sums = write_set(folder)

    def part(name: str) -> IdxPart:
        images, labels = (
            PublishedFile(file, sums[file], base + file)
            for file in (f"{name}-images.gz", f"{name}-labels.gz")
        )
        return IdxPart(images, labels, COUNTS[name])

    train = None if outliers else part("train")
    folders = ("made", "Made/raw")
    return IdxSource(
        "made", "https://made.org", folders, train, part("t10k"), ("a", "b", "c"), (2, 3)
    )


@pytest.mark.parametrize("folder", ["made", "Made/raw"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_reads_both_parts(tmp_path, folder, suffix):
    source = made_source(tmp_path / "elsewhere")
    write_set(tmp_path / folder, suffix)
    data = source.read(tmp_path)
    assert (data.name, data.num_classes, data.class_names) == ("made", 3, ("a", "b", "c"))
    for split, part in ((data.train, "train"), (data.test, "t10k")):
        assert split.x.shape == (COUNTS[part], 1, 2, 3)
        assert split.x.dtype == torch.float32
        assert np.array_equal(split.x[:, 0].numpy(), IMAGES[part].astype(np.float32) / 255)
        assert split.y.tolist() == LABELS[part].tolist()


def test_outliers_have_no_training_images(tmp_path):
    data = made_source(tmp_path / "made", outliers=True).read(tmp_path)
    assert data.train.x.shape == (0, 1, 2, 3)
    assert data.test.y.tolist() == LABELS["t10k"].tolist()


def test_the_published_file_is_preferred_to_the_one_without_gzip(tmp_path):
    source = made_source(tmp_path / "made")
    write(tmp_path / "made" / "t10k-labels", idx(np.array([0, 0, 0, 0])))
    assert source.read(tmp_path).test.y.tolist() == LABELS["t10k"].tolist()


def test_a_missing_file(tmp_path):
    source = made_source(tmp_path / "made")
    (tmp_path / "made" / "t10k-labels.gz").unlink()
    with pytest.raises(MissingDataError) as error:
        source.read(tmp_path)
    for part in (
        "made",
        "t10k-labels.gz (or t10k-labels)",
        str(tmp_path / "made"),
        "https://made.org",
    ):
        assert part in str(error.value)


def test_a_missing_set_names_all_folders(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(MissingDataError) as error:
        load_mnist()
    for part in (
        "train-images-idx3-ubyte.gz",
        str(tmp_path / "mnist"),
        str(tmp_path / "MNIST/raw"),
    ):
        assert part in str(error.value)


def test_a_wrong_checksum_stops_even_a_readable_file(tmp_path):
    source = made_source(tmp_path / "made")
    changed = IMAGES["train"].copy()
    changed[0, 0, 0] ^= 1
    write(tmp_path / "made" / "train-images.gz", idx(changed))
    with pytest.raises(DataError, match=r"train-images\.gz: damaged.*expected MD5"):
        source.read(tmp_path)


def test_a_label_out_of_range(tmp_path):
    source = made_source(tmp_path / "elsewhere")
    write_set(tmp_path / "made", "")
    write(tmp_path / "made" / "t10k-labels", idx(np.array([1, 1, 3, 2])))
    with pytest.raises(DataError, match="t10k-labels: expected labels 0 to 2, found 3 at image 2"):
        source.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-images", IMAGES["t10k"], r"expected shape \(5, 2, 3\), found \(4, 2, 3\)"),
        ("train-images", IMAGES["train"].transpose(0, 2, 1), r"found \(5, 3, 2\)"),
        ("t10k-labels", LABELS["train"], r"expected shape \(4,\), found \(5,\)"),
    ],
)
def test_wrong_numbers_and_sizes(tmp_path, name, values, message):
    source = made_source(tmp_path / "elsewhere")
    write_set(tmp_path / "made", "")
    write(tmp_path / "made" / name, idx(values))
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        source.read(tmp_path)


def test_published_numbers():
    for source in (MNIST, FASHION_MNIST):
        assert source.train is not None
        assert (source.train.count, source.test.count) == (60_000, 10_000)
        assert len(source.class_names) == 10
    assert NOTMNIST.train is None
    files = [
        file
        for source in (MNIST, FASHION_MNIST, NOTMNIST)
        for part in (source.train, source.test)
        if part is not None
        for file in (part.images, part.labels)
    ]
    assert len({file.md5 for file in files}) == len({file.url for file in files}) == 10
    assert all(len(file.md5) == 32 and file.url.endswith(file.name) for file in files)


def test_a_published_set_without_gzip_is_read_at_full_size(tmp_path):
    """The real loader on 10,000 images that the test writes: notMNIST, which has no training part."""
    images = np.zeros((10_000, 28, 28), np.uint8)
    images[3, 1, 2] = 255
    labels = np.arange(10_000) % 10
    write(tmp_path / "notmnist" / "t10k-images-idx3-ubyte", idx(images))
    write(tmp_path / "notmnist" / "t10k-labels-idx1-ubyte", idx(labels))
    data = load_notmnist(tmp_path)
    assert data.test.x.nonzero().tolist() == [[3, 0, 1, 2]]
    assert data.test.y[:12].tolist() == [*range(10), 0, 1]
    assert data.class_names == tuple("ABCDEFGHIJ")
