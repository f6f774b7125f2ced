"""The images of a study."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pyronorm import datasets
from pyronorm.datasets import ImageData
from pyronorm.study.study import Place

__all__ = ["joint_note", "load_images", "share_ratio"]

_DIGITS_RATIO = 0.2 / 0.8  # the seed decides the split


def load_images(
    name: str,
    seed: int,
    place: Place,
    num_train: int | None = None,
    num_test: int | None = None,
) -> ImageData:
    """Load a data set, or a part of it with each class in its share; pixels are in [0, 1].

    Args:
        name: name of the data set.
        seed: seeds the split and the choice of images.
        place: where the files are.
        num_train: training images to keep; None for all.
        num_test: test images to keep; None for all.
    """
    split_seed = seed if name == "digits" else 0  # the others come with a split
    root = None if place.data_root is None else Path(place.data_root)
    return _load(name, split_seed, root, place.allow_incomplete).subset(num_train, num_test, seed)


@lru_cache(maxsize=2)  # reading takes seconds, and jobs of a study read the same files
def _load(name: str, seed: int, data_root: Path | None, allow_incomplete: bool) -> ImageData:
    return datasets.load(name, seed, data_root, allow_incomplete=allow_incomplete)


def joint_note(*data: ImageData) -> str:
    """What has to be said of several data sets, each thing once."""
    return " ".join(dict.fromkeys(part.note for part in data if part.note))


def share_ratio(name: str) -> float:
    """Test images over all others, of data that seeds split; 0 for those that come with a split.

    It is what :attr:`pyronorm.study.Table.resampled` asks for. Of fewer training images two seeds share
    fewer, so that it is on the safe side there.
    """
    return _DIGITS_RATIO if name == "digits" else 0.0
