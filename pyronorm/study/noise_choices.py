"""How to train with noise: which normalizer, which law, beside what, at which learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pyronorm.checks import Count, Positive, Probability, check_fields
from pyronorm.errors import OptionError
from pyronorm.randomness import SeedNumber
from pyronorm.study.architectures import check_network
from pyronorm.study.checks import check_data, check_seeds
from pyronorm.study.images import load_images
from pyronorm.study.noise_choices_report import sections
from pyronorm.study.noise_networks import (
    AUGMENTATION,
    BATCH,
    DECAY,
    NORMALIZERS,
    NoiseNetworks,
    Way,
)
from pyronorm.study.noise_questions import QUESTIONS, label, make_question
from pyronorm.study.settings import Training
from pyronorm.study.study import Job, Outcome, Place, Results, Section, Study
from pyronorm.study.table import Row

__all__ = ["NoiseChoices", "NoiseChoicesSettings"]

_REGULARIZERS = (DECAY, AUGMENTATION, f"{DECAY} and {AUGMENTATION}")


@dataclass(frozen=True)
class NoiseChoicesSettings:
    """Choices in training with noise, each against its alternative and beside dropout.

    Attributes:
        questions: names of what is asked, of :data:`~pyronorm.study.QUESTIONS`.
        data: name of the data set.
        network: name of the network; it must take ``dropout``.
        normalizers: ``batch`` and others of ``weight``, ``analytic``, ``group``. Which part is noisy,
            warm-up and learning rates are asked of the first two.
        noise: ``n`` of the law in training, the same everywhere.
        dropout: rate of Monte-Carlo dropout, beside batch normalization.
        regularizers: of ``weight decay``, ``augmentation`` and ``weight decay and augmentation``,
            beside which batch normalization is trained plainly, with noise and with dropout.
        decay: weight decay of that, of AdamW.
        warm_up: epochs within which noise grows to ``n``, from 64 times its ``n``.
        learning_rates: those that are tried beside that of ``training``; a training each.
        margin: a difference of calibrated NLL that is too small to matter, in nats.
        seeds: each has its own images, networks and batches.
        num_train: training images.
        num_validation: images held out of the training set, for temperatures and learning rates.
        num_test: test images; None for all.
        training: how networks are trained.
        num_samples: draws per prediction, or passes with dropout.
        statistics_batches: batches of 256 training images for the statistics of a draw; None for all.
    """

    questions: tuple[str, ...] = tuple(QUESTIONS)
    data: str = "fashion-mnist"
    network: str = "lenet-5"
    normalizers: tuple[str, ...] = (BATCH, "weight", "analytic", "group")
    noise: Positive = 8.0
    dropout: Probability = 0.1
    regularizers: tuple[str, ...] = _REGULARIZERS
    decay: Positive = 0.05
    warm_up: Positive = 10.0
    learning_rates: tuple[Positive, ...] = (5e-4, 1e-3, 4e-3)
    margin: Positive = 0.02
    seeds: tuple[SeedNumber, ...] = (0, 1, 2, 3, 4)
    num_train: Count | None = None
    num_validation: Count = 1_000
    num_test: Count | None = None
    training: Training = field(default_factory=lambda: Training(30, 32, 2e-3))
    num_samples: Count = 16
    statistics_batches: Count | None = 4

    def __post_init__(self) -> None:
        check_fields(self)
        check_data(self.data)
        check_network(self.network)
        check_seeds(self.seeds)
        _check_names("questions", self.questions, tuple(QUESTIONS))
        _check_names("normalizers", self.normalizers, tuple(NORMALIZERS))
        _check_names("regularizers", self.regularizers, _REGULARIZERS)
        if self.normalizers[0] != BATCH or len(self.normalizers) < 2:
            raise OptionError(
                f"study: normalizers must be {BATCH} and at least one other, got "
                f"{', '.join(self.normalizers)}."
            )
        if not self.noise > 1:
            raise OptionError(f"study: noise must be above 1, got {self.noise}.")
        if not 0 < self.dropout < 1:
            raise OptionError(f"study: dropout must be between 0 and 1, got {self.dropout}.")
        if self.training.lr in self.learning_rates:
            raise OptionError(
                f"study: learning_rates are those beside that of training, {self.training.lr}, which is "
                "tried anyway. Leave it out."
            )
        for name, needed in (("regularizers", "regularizers"), ("learning_rates", "learning rate")):
            if needed in self.questions and not getattr(self, name):
                raise OptionError(f"study: the question {needed!r} needs at least one of {name}.")


@dataclass(frozen=True)
class NoiseChoices(Study):
    """Which law of noise, with which normalizer, beside which regularizer, at which learning rate.

    All networks of a seed share images, initial weights and order of batches. Temperatures and
    learning rates are chosen on the validation images of the seed; test images only judge. Every
    question has its own contrasts, paired by seed.
    """

    title: ClassVar[str] = "How to train with noise"

    name: str
    settings: NoiseChoicesSettings

    def jobs(self) -> Sequence[Job]:
        """One for each network and seed; what several questions need is trained once."""
        return [Job(name, seed) for seed in self.settings.seeds for name in self._ways()]

    def _ways(self) -> dict[str, Way]:
        questions = [make_question(name, self.settings) for name in self.settings.questions]
        return {way.name: way for question in questions for way in question.ways}

    def run(self, job: Job, place: Place) -> Outcome:
        """Train what the job's name says, and judge it."""
        settings, seed = self.settings, job.seed
        data = load_images(settings.data, seed, place)
        data, validation = data.split_off(settings.num_validation, seed)
        data = data.subset(settings.num_train, settings.num_test, seed)
        networks = NoiseNetworks(
            settings.network,
            settings.training,
            settings.num_samples,
            settings.statistics_batches,
            settings.decay,
            settings.warm_up,
            data=data,
            validation=validation,
            seed=seed,
            device=place.device,
        )
        way = self._ways()[job.name]
        condition = {} if way.lr is None else {"lr": way.lr}
        rows = [
            Row(label(way) + reading, seed, values, condition)
            for reading, values in networks.judge_way(way)
        ]
        return Outcome(rows, note=data.note)

    def sections(self, results: Results) -> Sequence[Section]:
        """All methods; then a section with an answer for each question."""
        return sections(self.settings, results)


def _check_names(field: str, names: tuple[str, ...], choices: tuple[str, ...]) -> None:
    if len(set(names)) < len(names) or not set(names) <= set(choices):
        raise OptionError(
            f"study: {field} must be different ones of {', '.join(choices)}, got {', '.join(names)}."
        )
