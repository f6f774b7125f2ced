"""The images of a study."""

from __future__ import annotations

from pyronorm import datasets
from pyronorm.datasets import ImageData
from pyronorm.study.study import Place

__all__ = ["load_images"]


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
    data = datasets.load(name, seed, place.data_root, allow_incomplete=place.allow_incomplete)
    return data.subset(num_train, num_test, seed)
