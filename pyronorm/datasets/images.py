"""Images with classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pyronorm.checks import Count, check_fields, checked
from pyronorm.datasets.splits import choose_stratified
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.randomness import Seed

__all__ = ["ImageData", "Split", "as_split"]


class Split(NamedTuple):
    """Inputs and classes of one part of a data set."""

    x: Float[Tensor, "example channel height width"]
    y: Int[Tensor, " example"]


@displayed
@dataclass(frozen=True, repr=False)
class ImageData:
    """Images with classes, split in two.

    The readers give pixels in [0, 1] as float32.

    Attributes:
        name: the data set's name.
        train: for training; empty in sets that serve only as outliers.
        test: held out.
        num_classes: number of classes.
        class_names: their names, where there are any.
        note: what has to be said beside any figure from these data, such as missing images; empty if
            nothing.

    Raises:
        ShapeError: if images and classes of a part differ in number, or the parts in image size.
        DataError: if a class is not one of ``num_classes``.
    """

    name: str
    train: Split
    test: Split
    num_classes: Count
    class_names: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        for part, (x, y) in (("train", self.train), ("test", self.test)):
            where = f"{self.name}, {part}"
            if x.ndim != 4 or len(x) != len(y):
                raise ShapeError(
                    f"{where}: expected images (example, channel, height, width) and as many classes, "
                    f"got {tuple(x.shape)} and {tuple(y.shape)}."
                )
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
                raise DataError(
                    f"{where}: expected classes 0 to {self.num_classes - 1}, found {int(y.min())} to "
                    f"{int(y.max())}."
                )
        if self.train.x.shape[1:] != self.test.x.shape[1:]:
            raise ShapeError(
                f"{self.name}: training images {tuple(self.train.x.shape[1:])}, test images "
                f"{tuple(self.test.x.shape[1:])}."
            )

    @checked
    def standardized(self, reference: Split | None = None) -> ImageData:
        r"""Each channel of both parts less its training mean, over its training standard deviation.

        Args:
            reference: the training part that gives mean and (biased) standard deviation; None for
                this set's own. For outliers, the training part of the set the network was trained
                on, not yet standardized.

        Raises:
            DataError: if there are no training images, or a channel does not vary.
        """
        x = self.train.x if reference is None else reference.x
        if not len(x):
            raise DataError(f"{self.name}: no training images to standardize by; pass reference=.")
        if x.shape[1] != self.test.x.shape[1]:
            raise ShapeError(
                f"{self.name}: {self.test.x.shape[1]} channels, the reference has {x.shape[1]}."
            )
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        if not bool((var > 0).all()):
            raise DataError(f"{self.name}: a channel has the same value in all training images.")
        std = var.sqrt()
        train, test = (Split((part.x - mean).div_(std), part.y) for part in (self.train, self.test))
        return replace(self, train=train, test=test)

    @checked
    def subset(
        self, num_train: Count | None = None, num_test: Count | None = None, seed: Seed = 0
    ) -> ImageData:
        """Fewer images, each class in its share.

        Args:
            num_train: training images to keep; None for all.
            num_test: test images to keep; None for all.
            seed: seeds the choice.

        Raises:
            OptionError: if a number is not between 1 and what there is.
        """
        train, test = (
            part if num is None else _take(part, num, seed, f"{self.name}: {option}")[0]
            for part, num, option in (
                (self.train, num_train, "num_train"),
                (self.test, num_test, "num_test"),
            )
        )
        return replace(self, train=train, test=test)

    @checked
    def split_off(self, num_validation: Count, seed: Seed = 0) -> tuple[ImageData, Split]:
        """Take a validation part out of the training part, each class in its share.

        Args:
            num_validation: its number of images.
            seed: seeds the choice.

        Returns:
            The data with the remaining training images, and the validation part.

        Raises:
            OptionError: if the number is not between 1 and one less than the training images.
        """
        where = f"{self.name}: num_validation"
        if num_validation == len(self.train.y):
            raise OptionError(f"{where}={num_validation} leaves no training images.")
        validation, train = _take(self.train, num_validation, seed, where)
        return replace(self, train=train), validation


def as_split(
    pixels: UInt8[Tensor, "example channel height width"], classes: UInt8[Tensor, " example"]
) -> Split:
    """Bytes as a split: pixels in [0, 1] as float32, classes as int64."""
    return Split(pixels.float().div_(255), classes.long())


def _take(part: Split, num: int, seed: Seed, option: str) -> tuple[Split, Split]:
    if not 1 <= num <= len(part.y):
        raise OptionError(f"{option} must be between 1 and {len(part.y)}, got {num}.")
    chosen, rest = choose_stratified(part.y, num, seed)
    return Split(part.x[chosen], part.y[chosen]), Split(part.x[rest], part.y[rest])
