"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial

from pyronorm.checks import Probability, checked
from pyronorm.datasets import bundled
from pyronorm.datasets.cifar import load_cifar10, load_cifar100
from pyronorm.datasets.images import ImageData
from pyronorm.datasets.mnist import load_fashion_mnist, load_mnist, load_notmnist
from pyronorm.datasets.tables import Table, TabularData
from pyronorm.datasets.uci import UCI, load_uci
from pyronorm.errors import OptionError
from pyronorm.files import StrPath
from pyronorm.randomness import Seed

__all__ = ["DATASETS", "OUTLIERS", "TABLES", "load", "load_table"]

_BUNDLED_TABLES: dict[str, Callable[[], Table]] = {
    "breast_cancer": bundled.load_breast_cancer,
    "wine": bundled.load_wine,
    "iris": bundled.load_iris,
    "diabetes": bundled.load_diabetes,
}

DATASETS: dict[str, Callable[..., ImageData]] = {
    "digits": bundled.load_digits,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
"""Sets of images with classes, by the name that the command line takes."""

OUTLIERS: dict[str, Callable[..., ImageData]] = {"notmnist": load_notmnist}
"""Sets of images to test on only, as outliers."""

TABLES: dict[str, Callable[..., Table]] = {
    **_BUNDLED_TABLES,
    **{name: partial(load_uci, name) for name in UCI},
}
"""Tables: those that come with scikit-learn, and UCI regression tables."""


@checked
def load(
    name: str,
    seed: Seed = 0,
    data_root: StrPath | None = None,
    *,
    download: bool = False,
    allow_incomplete: bool = False,
) -> ImageData:
    """Load a set of images by name.

    Args:
        name: one of :data:`DATASETS` or :data:`OUTLIERS`.
        seed: seeds the split where the set has none of its own (digits).
        data_root: folder of the data sets; None for environment variable ``PYRONORM_DATA``. Digits
            need none.
        download: download missing files there, with checksums; needs pooch.
        allow_incomplete: also take a copy of CIFAR with fewer images than published.

    Raises:
        OptionError: for an unknown name; the message lists the choices.
        MissingDataError: if files are missing.
        DataError: if a file is damaged.
    """
    choices = {**DATASETS, **OUTLIERS}
    if name in TABLES:
        raise OptionError(f"{name!r} is a table: load it with load_table.")
    if name not in choices:
        raise _unknown("data set", name, choices)
    if name == "digits":
        return bundled.load_digits(seed)
    options = {"allow_incomplete": True} if allow_incomplete and name.startswith("cifar") else {}
    return choices[name](data_root, download=download, **options)


@checked
def load_table(
    name: str,
    seed: Seed = 0,
    data_root: StrPath | None = None,
    *,
    test_share: Probability = 0.1,
    download: bool = False,
) -> TabularData:
    """Load a table by name, split and standardized; see :meth:`Table.split`.

    Args:
        name: one of :data:`TABLES`.
        seed: seeds the split.
        data_root: folder of the data sets; None for environment variable ``PYRONORM_DATA``. Tables that
            come with scikit-learn need none.
        test_share: share held out.
        download: download a missing UCI table there, with checksum; needs pooch.

    Raises:
        OptionError: for an unknown name; the message lists the choices.
        MissingDataError: if files are missing.
        DataError: if a file is damaged.
    """
    if name in DATASETS or name in OUTLIERS:
        raise OptionError(f"{name!r} is a set of images: load it with load.")
    if name not in TABLES:
        raise _unknown("table", name, TABLES)
    if name in _BUNDLED_TABLES:
        table = _BUNDLED_TABLES[name]()
    else:
        table = load_uci(name, data_root, download=download)
    return table.split(seed, test_share)


def _unknown(kind: str, name: str, choices: Iterable[str]) -> OptionError:
    plain = {_plain(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    hint = f" Did you mean {plain[near[0]]!r}?" if near else ""
    return OptionError(f"no {kind} {name!r}; choose from {', '.join(plain.values())}.{hint}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
