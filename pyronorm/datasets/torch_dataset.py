"""Any torch Dataset of images and classes as tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyronorm.checks import Count, checked
from pyronorm.datasets.images import ImageData, Split
from pyronorm.errors import DataError, ShapeError

__all__ = ["from_dataset"]


@checked
def from_dataset(
    train: Dataset[Any],
    test: Dataset[Any],
    name: str = "dataset",
    num_classes: Count | None = None,
) -> ImageData:
    """Read all examples of two torch data sets, such as torchvision's, into tensors.

    An example is a pair: an image ``(channel, height, width)``, of floats as they are (converted to
    float32) or of bytes, which become [0, 1]; and its class, a whole number. Random augmentation in the
    data set would be frozen: leave it out, and pass :class:`PadCropFlip` to :func:`pyronorm.fit`.

    Args:
        train: training examples; a Dataset with a length.
        test: held-out examples.
        name: the data set's name.
        num_classes: number of classes; None for the largest class in ``train`` and ``test`` plus one.

    Raises:
        ShapeError: if images differ in shape, or are not ``(channel, height, width)``.
        DataError: if a data set is empty, an example is not such a pair, a pixel is not finite, or a
            class is negative or not below ``num_classes``.
    """
    splits = [_read(train, f"{name}, train"), _read(test, f"{name}, test")]
    if num_classes is None:
        num_classes = 1 + max(int(split.y.max()) for split in splits)
    return ImageData(name, splits[0], splits[1], num_classes)


def _read(dataset: Dataset[Any], where: str) -> Split:
    try:
        length = len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(f"{where}: needs a Dataset with a length.") from error
    if not length:
        raise DataError(f"{where}: the Dataset is empty.")
    x: Tensor | None = None
    y = torch.empty(length, dtype=torch.long)
    for i in range(length):
        image, target = _pair(dataset[i], f"{where}, example {i}")
        if x is None:
            x = image.new_empty(length, *image.shape)
        if image.shape != x.shape[1:]:
            raise ShapeError(
                f"{where}, example {i}: expected shape {tuple(x.shape[1:])} as in example 0, got "
                f"{tuple(image.shape)}."
            )
        x[i], y[i] = image, target
    assert x is not None  # length is positive
    if not bool(x.isfinite().all()):
        raise DataError(f"{where}: a pixel is not finite.")
    return Split(x, y)


def _pair(example: Any, where: str) -> tuple[Tensor, int]:
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise DataError(f"{where}: expected a pair (image, class), got {type(example).__name__}.")
    image, target = example
    if not isinstance(image, Tensor):
        raise DataError(
            f"{where}: expected the image as a tensor, got {type(image).__name__}. With torchvision, "
            "pass transform=ToTensor() to the Dataset."
        )
    if image.ndim != 3:
        raise ShapeError(
            f"{where}: expected an image (channel, height, width), got {tuple(image.shape)}."
        )
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise DataError(f"{where}: expected pixels of floats or bytes, got {image.dtype}.")
    try:
        target = operator.index(target)
    except TypeError as error:
        raise DataError(f"{where}: expected a whole number as class, got {target!r}.") from error
    return image.float() / 255 if image.dtype == torch.uint8 else image.float(), target
