"""Tables: rows of features with a number or a class to predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.checks import Count, Probability, check_fields, checked
from pyronorm.datasets.splits import choose, choose_stratified
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.randomness import Seed

__all__ = ["Table", "TableSplit", "TabularData"]

Target = Float[Tensor, " example"] | Int[Tensor, " example"]


class TableSplit(NamedTuple):
    """Features and targets of one part of a table."""

    x: Float[Tensor, "example feature"]
    y: Target


@displayed
@dataclass(frozen=True, repr=False)
class TabularData:
    """A table in two parts, standardized by the training part.

    A prediction ``m`` with standard deviation ``s`` is ``y_mean + y_std * m`` with ``y_std * s`` in the
    target's own unit, and its log density there is lower by ``log y_std``.

    Attributes:
        name: the data set's name.
        train: for training, float32.
        test: held out, float32.
        x_mean: mean of each feature in the training part.
        x_std: its (biased) standard deviation; 1 for a feature that does not vary.
        y_mean: mean of the target in the training part; None for classes.
        y_std: its (biased) standard deviation; None for classes.
        feature_names: names of the features.
        target_name: name of the target.
        num_classes: number of classes; None for regression.
    """

    name: str
    train: TableSplit
    test: TableSplit
    x_mean: Float[Tensor, " feature"]
    x_std: Float[Tensor, " feature"]
    y_mean: float | None
    y_std: float | None
    feature_names: tuple[str, ...]
    target_name: str
    num_classes: Count | None = None

    @checked
    def split_off(self, num_validation: Count, seed: Seed = 0) -> tuple[TabularData, TableSplit]:
        """Take a validation part out of the training part; classes keep their shares.

        Both stay standardized by the whole training part.

        Raises:
            OptionError: if the number is not between 1 and one less than the training rows.
        """
        x, y = self.train
        if not 1 <= num_validation < len(y):
            raise OptionError(
                f"{self.name}: num_validation must be between 1 and {len(y) - 1}, got {num_validation}."
            )
        pick = choose if self.num_classes is None else choose_stratified
        chosen, rest = pick(y, num_validation, seed)
        remaining = replace(self, train=TableSplit(x[rest], y[rest]))
        return remaining, TableSplit(x[chosen], y[chosen])


@displayed
@dataclass(frozen=True, repr=False)
class Table:
    """A table as it is in its file.

    Attributes:
        name: the data set's name.
        x: features, float64.
        y: targets, float64, or classes, int64.
        feature_names: names of the features.
        target_name: name of the target.
        num_classes: number of classes; None for regression.

    Raises:
        ShapeError: if there are not as many targets as rows, or names as columns.
        DataError: if a value is not finite, or a class is not one of ``num_classes``.
    """

    name: str
    x: Float[Tensor, "example feature"]
    y: Target
    feature_names: tuple[str, ...]
    target_name: str
    num_classes: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.y, Tensor) or self.y.is_complex() or self.y.ndim != 1:
            raise ShapeError(f"{self.name}: y must be a tensor of real numbers, one per row.")
        if self.x.shape != (len(self.y), len(self.feature_names)):
            raise ShapeError(
                f"{self.name}: expected {len(self.y)} rows of {len(self.feature_names)} features, got "
                f"{tuple(self.x.shape)}."
            )
        if not bool(self.x.isfinite().all()) or not bool(self.y.isfinite().all()):
            raise DataError(f"{self.name}: a value is not finite.")
        if self.num_classes is not None and not (
            0 <= int(self.y.min()) <= int(self.y.max()) < self.num_classes
        ):
            raise DataError(f"{self.name}: expected classes 0 to {self.num_classes - 1}.")

    @checked
    def split(self, seed: Seed = 0, test_share: Probability = 0.1) -> TabularData:
        """Hold out a random share, and standardize by the rest.

        Features, and the target of a regression, get mean 0 and biased variance 1 over the training
        part; a feature that does not vary there is only centered. Classes keep their shares.

        Args:
            seed: seeds the split.
            test_share: share held out, rounded to whole rows.

        Raises:
            OptionError: if the share leaves a part empty.
            DataError: if the target does not vary in the training part.

        Source: the protocol of Hernández-Lobato & Adams, "Probabilistic backpropagation", ICML 2015
        (90% and 10%, 20 random splits); the splits themselves are ours.
        """
        num_test = round(test_share * len(self.y))
        if not 1 <= num_test < len(self.y):
            raise OptionError(
                f"{self.name}: test_share={test_share} of {len(self.y)} rows leaves a part empty."
            )
        pick = choose if self.num_classes is None else choose_stratified
        test, train = pick(self.y, num_test, seed)
        x_var, x_mean = torch.var_mean(self.x[train], 0, correction=0)
        varies = (self.x[train] != self.x[train][0]).any(0)
        x_std = torch.where(varies, x_var.sqrt(), 1.0)
        x, y = (self.x - x_mean) / x_std, self.y
        y_mean = y_std = None
        if self.num_classes is None:
            var, mean = torch.var_mean(y[train], correction=0)
            y_mean, y_std = float(mean), float(var.sqrt())
            if not y_std > 0:
                raise DataError(
                    f"{self.name}: {self.target_name} is the same in all training rows."
                )
            y = ((y - y_mean) / y_std).float()
        return TabularData(
            self.name,
            TableSplit(x[train].float(), y[train]),
            TableSplit(x[test].float(), y[test]),
            x_mean.float(),
            x_std.float(),
            y_mean,
            y_std,
            self.feature_names,
            self.target_name,
            self.num_classes,
        )
