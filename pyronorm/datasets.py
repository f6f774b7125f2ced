"""Data sets for examples and studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.errors import OptionError

__all__ = ["DATASETS", "ImageData", "Split", "load", "load_digits"]


class Split(NamedTuple):
    """Inputs and classes of one part of a data set."""

    x: Float[Tensor, "example channel height width"]
    y: Int[Tensor, " example"]


@dataclass(frozen=True)
class ImageData:
    """Images with classes, split in two.

    Attributes:
        name: the data set's name.
        train: for training.
        test: held out.
        num_classes: number of classes.
    """

    name: str
    train: Split
    test: Split
    num_classes: int


def load_digits(seed: int = 0, test_share: float = 0.2) -> ImageData:
    """Scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, scaled to [0, 1].

    Args:
        seed: seeds the split; the same seed gives the same split.
        test_share: share of the images that is held out, the same in each class.

    Raises:
        OptionError: if ``test_share`` is not between 0 and 1.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998); the copy that
    comes with scikit-learn, so nothing is downloaded.
    """
    if not 0 < test_share < 1:
        raise OptionError(f"load_digits: test_share must be between 0 and 1, got {test_share}.")
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    digits = bundled()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target, dtype=torch.long)
    index = torch.arange(len(y)).numpy()
    train, test = train_test_split(
        index, test_size=test_share, random_state=seed, stratify=digits.target
    )
    return ImageData("digits", Split(x[train], y[train]), Split(x[test], y[test]), 10)


DATASETS = {"digits": load_digits}
"""Data sets by the name that the command line takes."""


def load(name: str, seed: int = 0) -> ImageData:
    """Load a data set by name.

    Args:
        name: one of :data:`DATASETS`.
        seed: seeds the split.

    Raises:
        OptionError: for an unknown name; the message lists the choices.
    """
    if name not in DATASETS:
        raise OptionError(f"no data set {name!r}; choose from {', '.join(DATASETS)}.")
    return DATASETS[name](seed)
