"""CIFAR-10 as one tensor of bytes on the device, standardized there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyronorm.datasets.cifar import CIFAR10
from pyronorm.errors import DataError, MissingDataError

FORMS = (
    "the binary layout (data_batch_1.bin ... test_batch.bin), the Python layout (data_batch_1 ... "
    "test_batch), or sheets without loss: train-1.webp ... train-5.webp and test.webp, images of "
    "32x32 in rows of 50, with their classes as 'labels' in train-1.npz ... test.npz"
)
"""What is read. The parts may be of different forms and lie in different folders."""

_COLUMNS = 50  # of a sheet
_SHEETS = (*(f"train-{k}" for k in range(1, 6)), "test")


@dataclass(frozen=True)
class Images:
    """Images as bytes, with classes.

    Attributes:
        x: shape ``(image, 3, 32, 32)``, unsigned bytes.
        y: classes.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y)

    def __getitem__(self, index: slice | Tensor) -> Images:
        """Some of the images."""
        return Images(self.x[index], self.y[index])

    def to(self, device: torch.device) -> Images:
        """All of them on a device."""
        return Images(self.x.to(device), self.y.to(device))


class Standardize:
    """Bytes to float32, less the mean of each channel and over its standard deviation.

    Args:
        images: give mean and standard deviation.
    """

    def __init__(self, images: Images) -> None:
        values = torch.arange(256, device=images.x.device, dtype=torch.float64)
        # Counts of 256 values per channel, instead of a copy of all images in floating point.
        channels = images.x.movedim(1, 0).flatten(1)
        counts = torch.stack([torch.bincount(c, minlength=256) for c in channels]).double()
        counts /= counts.sum(1, keepdim=True)
        mean = counts @ values
        var = (counts * (values - mean[:, None]).square()).sum(1)
        self.mean = mean.float()[:, None, None]
        self.std = var.sqrt().float()[:, None, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Standardized, in the memory format channels-last."""
        return ((x.float() - self.mean) / self.std).to(memory_format=torch.channels_last)


def batches(images: Images, standardize: Standardize, size: int, count: int) -> Iterator[Tensor]:
    """The first ``count`` full batches of images, standardized; the rest is left out."""
    for start in range(0, min(count * size, len(images) - size + 1), size):
        yield standardize(images.x[start : start + size])


def read_cifar10(folders: Sequence[Path]) -> tuple[Images, Images, str]:
    """The parts of CIFAR-10 that are found.

    Args:
        folders: where to look, in order, and in the folders of CIFAR-10 in them, where they are the
            folders of all data sets; see :data:`FORMS`.

    Returns:
        Training images, test images, and what has to be said beside any figure from them.

    Raises:
        MissingDataError: if there is no part for training, or none for testing.
        DataError: if a file is damaged.
    """
    places = [place for f in folders for place in (f, *(f / name for name in CIFAR10.folders))]
    found = [_read(places, position) for position in range(len(_SHEETS))]
    train = [part for part in found[:-1] if part is not None]
    test = found[-1]
    if not train or test is None:
        absent = "no test images" if train else "no training images"
        raise MissingDataError(
            f"CIFAR-10: {absent} in {', '.join(map(str, folders))}. Expected {FORMS}."
        )
    images = Images(torch.cat([part.x for part in train]), torch.cat([part.y for part in train]))
    note = f"CIFAR-10, {len(images):,} training and {len(test):,} test images"
    if len(images) < 50_000 or len(test) < 10_000:
        note += ", an incomplete copy (complete: 50,000 and 10,000)"
    return images, test, note


def synthetic(train: int, test: int, seed: int = 0) -> tuple[Images, Images, str]:
    """Images of noise whose brightness tells the class a little: to see that everything runs."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (train + test,), generator=generator)
    x = 40 * torch.randn(len(y), 3, 32, 32, generator=generator) + 80 + 10 * y.view(-1, 1, 1, 1)
    images = Images(x.clamp(0, 255).byte(), y)
    note = f"synthetic images, {train:,} for training and {test:,} for testing: no result"
    return images[:train], images[train:], note


def _read(folders: Sequence[Path], position: int) -> Images | None:
    for folder in folders:
        for layout in (CIFAR10.binary, CIFAR10.python):
            file = (*layout.train, layout.test)[position]
            path = folder / file.name
            if path.is_file():
                most = CIFAR10.count[file is layout.test]  # images of the published file
                pixels, labels = layout.read(path, file, most)
                return _checked(path, pixels.reshape(-1, 3, 32, 32), labels)
        path = folder / f"{_SHEETS[position]}.webp"
        if path.is_file():
            return _checked(path, *_read_sheet(path))
    return None


def _read_sheet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    with np.load(path.with_suffix(".npz")) as arrays:
        labels = arrays["labels"].astype(np.int64)
    with Image.open(path) as sheet:
        grid = np.asarray(sheet.convert("RGB"))
    rows, width = grid.shape[0] // 32, _COLUMNS * 32
    if grid.shape[1] != width or not (rows - 1) * _COLUMNS < len(labels) <= rows * _COLUMNS:
        raise DataError(
            f"{path}: expected a sheet {width} pixels wide with a place for each of {len(labels):,} "
            f"images, got {grid.shape[1]} by {grid.shape[0]} pixels."
        )
    images = grid.reshape(rows, 32, _COLUMNS, 32, 3).transpose(0, 2, 4, 1, 3)
    return images.reshape(-1, 3, 32, 32)[: len(labels)], labels


def _checked(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Images:
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: expected images with classes from 0 to 9.")
    # A copy: tensors over read-only memory are not allowed.
    return Images(torch.from_numpy(pixels.copy()), torch.from_numpy(labels))
