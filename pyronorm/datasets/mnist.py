"""MNIST and the sets that come in its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyronorm.checks import checked
from pyronorm.datasets.files import (
    PublishedFile,
    fetch,
    find_data_root,
    find_folder,
    missing,
)
from pyronorm.datasets.idx import read_idx
from pyronorm.datasets.images import ImageData, Split, as_split
from pyronorm.errors import DataError
from pyronorm.files import StrPath

__all__ = ["IdxPart", "IdxSource", "load_fashion_mnist", "load_mnist", "load_notmnist"]


@dataclass(frozen=True)
class IdxPart:
    """Images and labels of one part, as IDX files, and how many there are."""

    images: PublishedFile
    labels: PublishedFile
    count: int


@dataclass(frozen=True)
class IdxSource:
    """A data set in the format of MNIST.

    Attributes:
        name: its name.
        page: where it is published.
        folders: where it is looked for under the data root, the first found.
        train: training part; None for sets that serve as outliers.
        test: test part.
        class_names: names of the classes.
        size: height and width of the images.
    """

    name: str
    page: str
    folders: tuple[str, ...]
    train: IdxPart | None
    test: IdxPart
    class_names: tuple[str, ...]
    size: tuple[int, int] = (28, 28)

    def read(
        self, data_root: StrPath | None, *, get: bool = False, progress: bool = True
    ) -> ImageData:
        """Read the set, after downloading what is missing if ``get``."""
        root = find_data_root(data_root, self.name, make=get)
        parts = [part for part in (self.train, self.test) if part is not None]
        files = [file for part in parts for file in (part.images, part.labels)]
        names = [name for file in files for name in (file.name, _raw(file.name))]
        folder = find_folder(root, self.folders, names)
        if get:
            folder = root / self.folders[0] if folder is None else folder
            for file in files:
                if not (folder / _raw(file.name)).is_file():
                    fetch(file, folder, progress=progress)
        looked_in = [root / f for f in self.folders] if folder is None else [folder]
        found = {file.name: self._find(file, looked_in) for file in files}
        splits = [
            self._read_part(part, found[part.images.name], found[part.labels.name])
            for part in parts
        ]
        test = splits[-1]
        train = Split(test.x[:0], test.y[:0]) if self.train is None else splits[0]
        return ImageData(self.name, train, test, len(self.class_names), self.class_names)

    def _find(self, file: PublishedFile, folders: list[Path]) -> Path:
        """The published file or, where it is not there, the same without gzip."""
        for folder in folders:
            for name in (file.name, _raw(file.name)):
                if (folder / name).is_file():
                    return folder / name
        names = f"{file.name} (or {_raw(file.name)})"
        raise missing(self.name, names, folders, self.page)

    def _read_part(self, part: IdxPart, images: Path, labels: Path) -> Split:
        x, y = (
            read_idx(path, file.md5 if path.name == file.name else None, shape)
            for path, file, shape in (
                (images, part.images, (part.count, *self.size)),
                (labels, part.labels, (part.count,)),
            )
        )
        wrong = (y >= len(self.class_names)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise DataError(
                f"{labels}: expected labels 0 to {len(self.class_names) - 1}, found {int(y[at])} at "
                f"image {at}."
            )
        return as_split(x[:, None], y)


def _raw(name: str) -> str:
    return name.removesuffix(".gz")


def _part(prefix: str, base: str, images_md5: str, labels_md5: str, count: int) -> IdxPart:
    names = (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
    return IdxPart(
        PublishedFile(names[0], images_md5, base + names[0]),
        PublishedFile(names[1], labels_md5, base + names[1]),
        count,
    )


_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = IdxSource(
    "mnist",
    f"http://yann.lecun.com/exdb/mnist/ (mirror: {_MNIST_URL})",
    ("mnist", "MNIST/raw"),
    _part(
        "train",
        _MNIST_URL,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        60_000,
    ),
    _part(
        "t10k",
        _MNIST_URL,
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
        10_000,
    ),
    tuple("0123456789"),
)

_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST = IdxSource(
    "fashion-mnist",
    "https://github.com/zalandoresearch/fashion-mnist",
    ("fashion-mnist", "FashionMNIST/raw"),
    _part(
        "train",
        _FASHION_URL,
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        60_000,
    ),
    _part(
        "t10k",
        _FASHION_URL,
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
        10_000,
    ),
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)

_NOTMNIST_PAGE = "https://github.com/davidflanagan/notMNIST-to-MNIST"
NOTMNIST = IdxSource(
    "notmnist",
    _NOTMNIST_PAGE,
    ("notmnist", "notMNIST"),
    None,
    _part(
        "t10k",
        f"{_NOTMNIST_PAGE}/raw/master/",
        "2c87c839a4ef9b238846600eec8c35b7",
        "7ea9118cbafd0f6e3ee2ad771d782a01",
        10_000,
    ),
    tuple("ABCDEFGHIJ"),
)


@checked
def load_mnist(data_root: StrPath | None = None, *, download: bool = False) -> ImageData:
    """MNIST: handwritten digits, 60,000 and 10,000 images of 28x28 pixels.

    Read from ``mnist/`` (or ``MNIST/raw/``) under the data root: the four files as published, gzipped
    (MD5 checked) or not (sizes and magic numbers checked).

    Args:
        data_root: folder of the data sets; None for environment variable ``PYRONORM_DATA``.
        download: download missing files there, with checksums; needs pooch.

    Raises:
        MissingDataError: if files are missing.
        DataError: if a file is damaged.

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86, 1998.
    """
    return MNIST.read(data_root, get=download)


@checked
def load_fashion_mnist(data_root: StrPath | None = None, *, download: bool = False) -> ImageData:
    """Fashion-MNIST: articles of clothing, 60,000 and 10,000 images of 28x28 pixels.

    Read from ``fashion-mnist/`` (or ``FashionMNIST/raw/``) under the data root; arguments and errors
    are those of :func:`load_mnist`.

    Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
    learning algorithms", arXiv:1708.07747, 2017.
    """
    return FASHION_MNIST.read(data_root, get=download)


@checked
def load_notmnist(data_root: StrPath | None = None, *, download: bool = False) -> ImageData:
    """The test images of notMNIST, letters A to J in many fonts, as outliers for MNIST.

    10,000 images of 28x28 pixels; the training part is empty. Standardize them as the network's own
    inputs: ``load_notmnist().standardized(mnist.train)``. Read from ``notmnist/`` under the data root;
    arguments and errors are those of :func:`load_mnist`.

    Source: Bulatov, "notMNIST dataset", 2011; David Flanagan's sample of it in the format of MNIST.
    """
    return NOTMNIST.read(data_root, get=download)
