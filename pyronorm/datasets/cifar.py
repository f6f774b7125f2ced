"""CIFAR-10 and CIFAR-100, in their binary and their Python layout."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.datasets.files import (
    PublishedFile,
    fetch,
    find_data_root,
    find_folder,
    missing,
    read_verified,
)
from pyronorm.datasets.images import ImageData, Split
from pyronorm.datasets.pickled import read_pickled_bytes
from pyronorm.errors import DataError
from pyronorm.files import StrPath, write_file

__all__ = ["BinaryLayout", "CifarSource", "PythonLayout", "load_cifar10", "load_cifar100"]

_PIXELS = 3 * 32 * 32

Records = tuple[UInt8[ndarray, "image 3072"], Int64[ndarray, " image"]]


class _Layout(ABC):
    """How the files of CIFAR are written."""

    train: tuple[PublishedFile, ...]
    test: PublishedFile

    @property
    def names(self) -> list[str]:
        """Names of all files."""
        return [file.name for file in (*self.train, self.test)]

    @abstractmethod
    def read(self, path: Path, file: PublishedFile, most: int) -> Records:
        """Pixels and classes of a file of at most so many images."""


@dataclass(frozen=True)
class BinaryLayout(_Layout):
    """Records of the label bytes, then 1,024 bytes each of red, green and blue, row by row.

    Attributes:
        train: training files, in order.
        test: test file.
        label_bytes: label bytes per record; the last is the class.
    """

    train: tuple[PublishedFile, ...]
    test: PublishedFile
    label_bytes: int = 1

    def read(self, path: Path, file: PublishedFile, most: int) -> Records:
        """Pixels and classes of a file of at most so many images.

        Raises:
            DataError: if the file does not hold whole records, or more than so many.
        """
        size = self.label_bytes + _PIXELS
        found = path.stat().st_size
        if found > most * size:  # known before it is read
            raise DataError(f"{path}: expected {most:,} images, found {found // size:,}.")
        content = read_verified(path, file.md5)
        if len(content) % size:
            raise DataError(
                f"{path}: truncated: expected records of {size:,} bytes, found {len(content):,} bytes, "
                f"{len(content) % size:,} more than {len(content) // size:,} records."
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1].astype(np.int64)


@dataclass(frozen=True)
class PythonLayout(_Layout):
    """Pickled dictionaries with an array ``data`` and a list of labels. No pickle is executed.

    Attributes:
        train: training files, in order.
        test: test file.
        label_key: the entry with the classes.
    """

    train: tuple[PublishedFile, ...]
    test: PublishedFile
    label_key: str = "labels"

    def read(self, path: Path, file: PublishedFile, most: int) -> Records:
        """Pixels and classes of a file of at most so many images.

        Raises:
            DataError: if the file is damaged, or holds anything but arrays, lists and numbers.
        """
        found = read_pickled_bytes(read_verified(path, file.md5), str(path))
        absent = [key for key in ("data", self.label_key) if key not in found]
        if absent:
            raise DataError(f"{path}: no entry {absent[0]!r}; it has {', '.join(found)}.")
        data, labels = found["data"], found[self.label_key]
        if not isinstance(data, ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
            raise DataError(f"{path}: expected data of shape (images, {_PIXELS}) in bytes.")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise DataError(f"{path}: expected {self.label_key} to be a list of integers.")
        if len(labels) != len(data):
            raise DataError(f"{path}: {len(data):,} images and {len(labels):,} labels.")
        return data, np.array(labels, np.int64)


@dataclass(frozen=True)
class CifarSource:
    """CIFAR-10 or CIFAR-100.

    Attributes:
        name: its name.
        page: where it is published.
        archive: the published archive of the binary layout.
        binary: binary layout.
        python: Python layout.
        folders: where the set is looked for under the data root, the first found; a downloaded
            archive is unpacked into the first.
        count: images per training file and in the test file.
        num_classes: number of classes.
        class_names: their names.
    """

    name: str
    page: str
    archive: PublishedFile
    binary: BinaryLayout
    python: PythonLayout
    folders: tuple[str, ...]
    count: tuple[int, int]
    num_classes: Count
    class_names: tuple[str, ...] = ()

    def read(
        self,
        data_root: StrPath | None,
        *,
        get: bool = False,
        allow_incomplete: bool = False,
        progress: bool = True,
    ) -> ImageData:
        """Read the set, after downloading it if ``get`` and files are missing."""
        root = find_data_root(data_root, self.name, make=get)
        folder, layout = self._find(root)
        if get and not (folder and all((folder / name).is_file() for name in layout.names)):
            self._download(root, progress)
            folder, layout = self._find(root)
        looked_in = [root / f for f in self.folders] if folder is None else [folder]
        paths = [(looked_in[0] / name) for name in layout.names]
        for path in paths:
            if not path.is_file():
                raise missing(self.name, path.name, looked_in, self.page)
        files = [*layout.train, layout.test]
        most = [self.count[0]] * len(layout.train) + [self.count[1]]
        parts = [layout.read(*one) for one in zip(paths, files, most, strict=True)]
        for path, (_, labels) in zip(paths, parts, strict=True):
            self._check_labels(path, labels)
        note = self._check_counts(paths, [len(labels) for _, labels in parts], allow_incomplete)
        return ImageData(
            self.name,
            _join(parts[:-1]),
            _join(parts[-1:]),
            self.num_classes,
            self.class_names,
            note,
        )

    def _find(self, root: Path) -> tuple[Path | None, BinaryLayout | PythonLayout]:
        for layout in (self.binary, self.python):
            folder = find_folder(root, self.folders, layout.names)
            if folder is not None:
                return folder, layout
        return None, self.binary

    def _download(self, root: Path, progress: bool) -> None:
        archive = fetch(self.archive, root, progress=progress)
        folder = root / self.folders[0]
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            for name in self.binary.names:
                content = tar.extractfile(members[name]) if name in members else None
                if content is None:
                    raise DataError(f"{archive}: no file {name} in the archive.")
                write_file(folder / name, content.read())
        archive.unlink()

    def _check_labels(self, path: Path, labels: Int64[ndarray, " image"]) -> None:
        wrong = ((labels < 0) | (labels >= self.num_classes)).nonzero()[0]
        if len(wrong):
            raise DataError(
                f"{path}: expected labels 0 to {self.num_classes - 1}, found {labels[wrong[0]]} at "
                f"image {wrong[0]}."
            )

    def _check_counts(self, paths: list[Path], found: list[int], allow_incomplete: bool) -> str:
        """Compare numbers of images; the note for an incomplete copy."""
        expected = [self.count[0]] * (len(found) - 1) + [self.count[1]]
        files = list(zip(paths, found, expected, strict=True))
        for path, count, full in files:
            if count > full:
                raise DataError(f"{path}: expected {full:,} images, found {count:,}.")
        if found == expected:
            return ""
        note = (
            f"incomplete copy: {sum(found[:-1]):,} of {sum(expected[:-1]):,} training images, "
            f"{found[-1]:,} of {expected[-1]:,} test images"
        )
        if allow_incomplete and all(found):
            return note
        short = "; ".join(f"{p.name}: {n:,} of {m:,}" for p, n, m in files if n < m)
        raise DataError(
            f"{self.name}: {note} ({short}, in {paths[0].parent}). Get the complete set from "
            f"{self.page}, or pass allow_incomplete=True to use what is there."
        )


def _join(parts: list[Records]) -> Split:
    """Files one after another; pixels in [0, 1]."""
    x = torch.empty(sum(len(labels) for _, labels in parts), 3, 32, 32)
    start = 0
    for pixels, labels in parts:
        end = start + len(labels)
        # A copy: tensors over read-only memory are not allowed.
        x[start:end] = torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32)
        start = end
    y: Tensor = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    return Split(x.div_(255), y)


_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_URL = "https://www.cs.toronto.edu/~kriz/"

CIFAR10 = CifarSource(
    name="cifar10",
    page=_PAGE,
    archive=PublishedFile(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        _URL + "cifar-10-binary.tar.gz",
    ),
    binary=BinaryLayout(
        tuple(PublishedFile(f"data_batch_{k}.bin") for k in range(1, 6)),
        PublishedFile("test_batch.bin"),
    ),
    python=PythonLayout(
        (
            PublishedFile("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            PublishedFile("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            PublishedFile("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            PublishedFile("data_batch_4", "634d18415352ddfa80567beed471001a"),
            PublishedFile("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        PublishedFile("test_batch", "40351d587109b95175f43aff81a1287e"),
    ),
    folders=("cifar-10-batches-bin", "cifar-10-batches-py", "cifar10", "cifar-10"),
    count=(10_000, 10_000),
    num_classes=10,
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
)

CIFAR100 = CifarSource(
    name="cifar100",
    page=_PAGE,
    archive=PublishedFile(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        _URL + "cifar-100-binary.tar.gz",
    ),
    binary=BinaryLayout((PublishedFile("train.bin"),), PublishedFile("test.bin"), label_bytes=2),
    python=PythonLayout(
        (PublishedFile("train", "16019d7e3df5f24257cddd939b257f8d"),),
        PublishedFile("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        "fine_labels",
    ),
    folders=("cifar-100-binary", "cifar-100-python", "cifar100", "cifar-100"),
    count=(50_000, 10_000),
    num_classes=100,
)


@checked
def load_cifar10(
    data_root: StrPath | None = None, *, download: bool = False, allow_incomplete: bool = False
) -> ImageData:
    """CIFAR-10: 50,000 and 10,000 color images of 32x32 pixels, 10 classes.

    Read from the first folder found under the data root: the binary layout (``data_batch_1.bin``, ...)
    in ``cifar-10-batches-bin/`` or ``cifar10/``, else the Python layout (``data_batch_1``, ...) in
    ``cifar-10-batches-py/`` or ``cifar10/``. For the files of the Python layout MD5 checksums are
    checked, and no pickle is executed; for those of the binary layout, where only the archive has a
    published checksum, sizes and labels.

    Args:
        data_root: folder of the data sets; None for environment variable ``PYRONORM_DATA``.
        download: download the binary layout there if files are missing, with checksum; needs pooch.
        allow_incomplete: also read binary files that hold fewer images than published;
            :attr:`ImageData.note` then says how many.

    Raises:
        MissingDataError: if files are missing.
        DataError: if a file is damaged, or the copy is incomplete and that is not allowed.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    return CIFAR10.read(data_root, get=download, allow_incomplete=allow_incomplete)


@checked
def load_cifar100(
    data_root: StrPath | None = None, *, download: bool = False, allow_incomplete: bool = False
) -> ImageData:
    """CIFAR-100: 50,000 and 10,000 color images of 32x32 pixels, 100 classes (the fine labels).

    Read from ``cifar-100-binary/`` (``train.bin``, ``test.bin``), ``cifar-100-python/`` (``train``,
    ``test``) or ``cifar100/`` under the data root; arguments and errors are those of
    :func:`load_cifar10`.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    return CIFAR100.read(data_root, get=download, allow_incomplete=allow_incomplete)
