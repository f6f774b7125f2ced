"""The studies by name, each in two sizes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from pyronorm.checks import checked
from pyronorm.errors import DataError, OptionError
from pyronorm.study.batch_size import BatchSize, BatchSizeSettings
from pyronorm.study.compare import Compare, CompareSettings
from pyronorm.study.comparison import Comparison
from pyronorm.study.noise_choices import NoiseChoices, NoiseChoicesSettings
from pyronorm.study.pretrained import Pretrained, PretrainedSettings
from pyronorm.study.settings import Settings, Training
from pyronorm.study.study import Study
from pyronorm.study.training_noise import TrainingNoise, TrainingNoiseSettings
from pyronorm.study.uci_networks import UncertaintyUciSettings
from pyronorm.study.uncertainty_mnist import UncertaintyMNIST, UncertaintyMNISTSettings
from pyronorm.study.uncertainty_uci import UncertaintyUci

__all__ = ["STUDIES", "Entry", "make_study", "restore_study"]


@dataclass(frozen=True)
class Entry:
    """A study of the catalog.

    Attributes:
        make: makes it from its name and settings.
        quick: settings for a laptop.
        full: settings of the published experiment, for a GPU.
        description: one line.
    """

    make: Callable[[str, Any], Study]
    quick: Any
    full: Any
    description: str


_POSTERIORS = ("point", "fixed", "mean-field", "low-rank")
_WEIGHT, _ANALYTIC, _GROUP = (
    tuple(f"{normalizer}/{posterior}" for posterior in _POSTERIORS)
    for normalizer in ("weight", "analytic", "group")
)
_PAPER = (*_WEIGHT, *_ANALYTIC, *_GROUP)
_PAPER_IN_SMALL = tuple(
    f"{normalizer}/{posterior}"
    for normalizer in ("weight", "analytic", "group")
    for posterior in ("point", "fixed", "mean-field")
)
_DRAWS = (1, 2, 4, 8, 16, 32, 64, 128)
_LEVELS = (4.0, 8.0, 16.0, 32.0, 64.0)
_BATCH = ("batch/point", "batch/mcbn", "batch/stochastic")

STUDIES: Mapping[str, Entry] = {
    "compare": Entry(
        Compare,
        CompareSettings(),
        CompareSettings(many=Settings(methods=("all",)), seeds=tuple(range(10))),
        "batch noise where images are few, and where they are not (digits)",
    ),
    "digits": Entry(
        Comparison,
        Settings(),
        Settings(methods=("all",), seeds=tuple(range(10))),
        "normalizers and posteriors on scikit-learn's digits",
    ),
    "fashion": Entry(
        TrainingNoise,
        TrainingNoiseSettings(
            noise=(("batch", (4.0, 8.0, 16.0, 32.0)), ("weight", (8.0,))),
            after=(64.0,),
            num_train=1_000,
            num_test=2_000,
            training=Training(30, 32, 2e-3),
            num_samples=16,
        ),
        TrainingNoiseSettings(
            noise=tuple((name, _LEVELS) for name in ("batch", "weight", "analytic")),
        ),
        "noise in training on Fashion-MNIST, beside dropout and ensembles",
    ),
    "mnist": Entry(
        TrainingNoise,
        TrainingNoiseSettings(
            data="mnist",
            noise=(("batch", (4.0, 8.0, 16.0, 32.0)), ("weight", (4.0, 8.0, 16.0))),
            num_train=500,
            num_test=2_000,
            training=Training(60, 32, 2e-3),
            num_samples=16,
        ),
        TrainingNoiseSettings(
            data="mnist",
            noise=tuple((name, _LEVELS) for name in ("batch", "weight", "analytic")),
        ),
        "the same on MNIST, with few images",
    ),
    "cifar": Entry(
        TrainingNoise,
        TrainingNoiseSettings(
            data="cifar10",
            network="lenet-5-32",
            noise=(("batch", (4.0, 8.0, 16.0, 32.0)), ("weight", (8.0, 16.0))),
            num_train=2_500,
            num_test=2_000,
            training=Training(25, 32, 2e-3),
            num_samples=16,
        ),
        TrainingNoiseSettings(
            data="cifar10",
            network="resnet-18",
            noise=(("batch", _LEVELS), ("group", _LEVELS)),
            num_validation=5_000,
            training=Training(100, 128, 1e-3, 5e-4, augment=True, precision="bf16-mixed"),
        ),
        "the same on CIFAR-10",
    ),
    "noise-choices": Entry(
        NoiseChoices,
        NoiseChoicesSettings(
            regularizers=("weight decay", "augmentation"),
            learning_rates=(1e-3, 4e-3),
            num_train=1_000,
            num_test=2_000,
        ),
        NoiseChoicesSettings(),
        "choices in training with noise: normalizer, law, warm-up, regularizers, learning rate",
    ),
    "stochastic-normalization": Entry(
        Comparison,
        Settings(
            data="fashion-mnist",
            network="all-cnn-tiny",
            methods=("batch/point", "batch/mcbn", *_PAPER_IN_SMALL),
            num_train=1_000,
            num_test=2_000,
            training=Training(20, 32, 3e-3),
            num_samples=16,
            bank_rows=128,
            draws_curve=_DRAWS,
            arviz_samples=20,
            timed_predictions=1,
        ),
        Settings(
            data="cifar10",
            network="all-cnn",
            methods=(*_BATCH, *_PAPER),
            training=Training(200, 32, 1e-3, 5e-4, augment=True, precision="bf16-mixed"),
            draws_curve=_DRAWS,
        ),
        "the ACCV 2018 paper: explicit noise for normalizers without batch noise (CIFAR-10)",
    ),
    "batch-size": Entry(
        BatchSize,
        BatchSizeSettings(
            seeds=(0, 1, 2, 3, 4),
            num_train=1_000,
            num_test=1_000,
            training=Training(8, 32, 4e-3),
            batch_sizes=(4, 16, 64),
            groups=(1, 4, 16),
            whitening_groups=(8,),
            bank_rows=32,
            num_samples=16,
        ),
        BatchSizeSettings(
            data="cifar10",
            network="resnet-20",
            training=Training(100, 32, 1e-3, 5e-4, augment=True, precision="bf16-mixed"),
        ),
        "what the batch size does to batch normalization, and what can take its place",
    ),
    "uncertainty-mnist": Entry(
        UncertaintyMNIST,
        UncertaintyMNISTSettings(
            methods=("weight/point", "weight/fixed"),
            seeds=(0, 1, 2, 3, 4),
            num_train=1_000,
            num_test=1_000,
            training=Training(10, 32, 2e-3),
            members=3,
            dropout=0.2,
            bank_rows=64,
            num_samples=15,
            corruptions=(
                "gaussian_noise",
                "defocus_blur",
                "contrast",
                "elastic_transform",
                "rotation",
            ),
            severities=(1, 3, 5),
            shift_images=200,
        ),
        UncertaintyMNISTSettings(),
        "the stochastic batch normalization paper: LeNet-5 on MNIST, letters as outliers",
    ),
    "pretrained": Entry(
        Pretrained,
        PretrainedSettings(
            network="lenet-5",
            seeds=(0, 1, 2, 3, 4),
            num_train=1_000,
            num_validation=500,
            num_test=1_000,
            training=Training(20, 32, 2e-3),
            posterior_epochs=4,
            sizes=(8, 16, 32, 128),
            bank_sizes=(2, 4, 8, 32),
            members=3,
            bank_rows=32,
            num_samples=16,
        ),
        PretrainedSettings(network="all-cnn-small"),
        "what a posterior adds to a network that is trained already",
    ),
    "uncertainty-uci": Entry(
        UncertaintyUci,
        UncertaintyUciSettings(
            tables=("bostonHousing", "concrete", "wine-quality-red", "yacht"),
            seeds=(0, 1, 2, 3, 4),
            steps=500,
            lr=1e-2,
            batch_sizes=(32, 96),  # the smallest table trains on 197 rows
            dropouts=(0.05,),
            num_samples=100,
        ),
        UncertaintyUciSettings(),
        "the MCBN paper's regressions: worth of the uncertainty, intervals (UCI tables)",
    ),
}
"""Studies that ``pyronorm study`` knows, by name."""


@checked
def make_study(name: str, *, quick: bool = False, **changes: object) -> Study:
    """A study of :data:`STUDIES`.

    Args:
        name: its name.
        quick: the size for a laptop instead of the full one.
        changes: settings that differ from the size's; None leaves one as it is.

    Raises:
        OptionError: for an unknown name or setting; the message lists the choices.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"no study {name!r}.{hint} Choose from {', '.join(STUDIES)}.")
    entry = STUDIES[name]
    settings = entry.quick if quick else entry.full
    known = [f.name for f in fields(settings)]
    given = {key: value for key, value in changes.items() if value is not None}
    for key in given:
        if key not in known:
            raise OptionError(f"{name} has no setting {key!r}; it has {', '.join(known)}.")
    return entry.make(name, replace(settings, **given))


@checked
def restore_study(record: Mapping[str, Any]) -> Study:
    """The study that a folder's ``study.json`` is of.

    Raises:
        OptionError: if this version does not know the study.
        DataError: if it has other settings in this version.
    """
    name = str(record.get("study"))
    if name not in STUDIES:
        raise OptionError(
            f"no study {name!r}; there are {', '.join(STUDIES)}. For one of your own call "
            "pyronorm.study.write_report(study, folder)."
        )
    entry = STUDIES[name]
    other = f"the settings of {name} in study.json are not those of this version"
    try:
        study = entry.make(name, _restored(type(entry.full), record["settings"]))
    except (TypeError, OptionError) as error:
        raise DataError(f"{other}: {str(error).rstrip('.')}.") from None
    if study.fingerprint() != record.get("fingerprint"):  # some are missing, or have new meanings
        raise DataError(
            f"{other}: they make configuration {study.fingerprint()} here, and it was "
            f"{record.get('fingerprint')}."
        )
    return study


def _restored(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON: lists become tuples, objects the dataclasses of their fields."""
    hints = get_type_hints(kind)
    found = {}
    for key, value in values.items():
        hint = hints.get(key)
        inner = [
            part for part in (hint, *get_args(hint)) if is_dataclass(part)
        ]  # or None beside it
        if inner and isinstance(value, Mapping):
            found[key] = _restored(inner[0], value)  # type: ignore[arg-type]
        else:
            found[key] = _value(value)
    return kind(**found)


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_value, value))
    return float(value) if value in ("inf", "-inf") else value  # as folders write infinity
