"""Checks that the settings of several studies share."""

from __future__ import annotations

from pyronorm import datasets
from pyronorm.errors import OptionError

__all__ = ["check_data", "check_least", "check_outliers", "check_seeds"]


def check_data(name: str) -> None:
    """Refuse unknown data sets."""
    if name not in datasets.DATASETS:
        raise OptionError(
            f"study: no data set {name!r}; choose from {', '.join(datasets.DATASETS)}."
        )


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Refuse seeds that repeat, and none."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise OptionError(f"study: seeds must be different and not negative, got {seeds}.")


def check_least(name: str, value: int, least: int) -> None:
    """Refuse values that are too small."""
    if value < least:
        raise OptionError(f"study: {name} must be at least {least}, got {value}.")


def check_outliers(name: str) -> None:
    """Refuse unknown data sets, and take those that serve only as outliers."""
    choices = {**datasets.DATASETS, **datasets.OUTLIERS}
    if name not in choices:
        raise OptionError(f"study: no data set {name!r}; choose from {', '.join(choices)}.")
