"""Data sets that come with scikit-learn: nothing to download."""

from __future__ import annotations

from typing import Any

import torch

from pyronorm.checks import Count, Probability, checked
from pyronorm.datasets.images import ImageData, Split
from pyronorm.datasets.tables import Table
from pyronorm.errors import OptionError
from pyronorm.randomness import Seed, seed_value

__all__ = ["load_breast_cancer", "load_diabetes", "load_digits", "load_iris", "load_wine"]


@checked
def load_digits(seed: Seed = 0, test_share: Probability = 0.2) -> ImageData:
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
        index, test_size=test_share, random_state=seed_value(seed) % 2**32, stratify=digits.target
    )
    return ImageData(
        "digits", Split(x[train], y[train]), Split(x[test], y[test]), 10, tuple("0123456789")
    )


def load_breast_cancer() -> Table:
    """Breast tumors, malignant or benign: 569 rows, 30 features, 2 classes.

    Source: Wolberg, Street & Mangasarian, "Breast Cancer Wisconsin (Diagnostic)" (UCI, 1993).
    """
    from sklearn.datasets import load_breast_cancer as bundled

    return _table("breast_cancer", bundled(), "benign", num_classes=2)


def load_wine() -> Table:
    """Wines of three cultivars: 178 rows, 13 features, 3 classes.

    Source: Aeberhard & Forina, "Wine" (UCI, 1992).
    """
    from sklearn.datasets import load_wine as bundled

    return _table("wine", bundled(), "cultivar", num_classes=3)


def load_iris() -> Table:
    """Irises: 150 rows, 4 features, 3 classes.

    Source: Fisher, "Iris" (UCI, 1936).
    """
    from sklearn.datasets import load_iris as bundled

    return _table("iris", bundled(), "species", num_classes=3)


def load_diabetes() -> Table:
    """Progression of diabetes after a year: 442 rows, 10 features, regression.

    Source: Efron, Hastie, Johnstone & Tibshirani, "Least angle regression", Annals of Statistics 32,
    2004; the features as measured, not scaled.
    """
    from sklearn.datasets import load_diabetes as bundled

    return _table("diabetes", bundled(scaled=False), "progression", num_classes=None)


def _table(name: str, bunch: Any, target_name: str, num_classes: Count | None) -> Table:
    x = torch.tensor(bunch.data, dtype=torch.float64)
    y = torch.tensor(bunch.target, dtype=torch.float64 if num_classes is None else torch.long)
    names = tuple(str(feature) for feature in bunch.feature_names)
    return Table(name, x, y, names, target_name, num_classes)
