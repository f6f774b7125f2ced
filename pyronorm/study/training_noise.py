"""What noise in training is worth, in networks, beside dropout and ensembles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from pyronorm import guides
from pyronorm.baselines import predict_dropout
from pyronorm.checks import Count, Positive, Probability, check_fields
from pyronorm.datasets import ImageData, Split
from pyronorm.diagnostics import classification_metrics, fit_temperature, realized_noise
from pyronorm.errors import DataError, OptionError
from pyronorm.infer import collect_bank, predict, refresh_draws
from pyronorm.latents import Draws
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import Analytic, Group, Normalizer, Weight
from pyronorm.randomness import SeedNumber
from pyronorm.study.architectures import check_network, make_network
from pyronorm.study.checks import check_data, check_least, check_seeds
from pyronorm.study.images import load_images
from pyronorm.study.settings import Training
from pyronorm.study.study import Job, Outcome, Place, Results, Section, Study
from pyronorm.study.table import Row
from pyronorm.study.training import Trained, train
from pyronorm.study.training_noise_report import sections

__all__ = ["TrainingNoise", "TrainingNoiseSettings"]

_NORMALIZERS: Mapping[str, Normalizer | None] = MappingProxyType(
    {"batch": None, "weight": Weight(), "analytic": Analytic(), "group": Group(2)}
)
_BATCH, _DROPOUT = "batch", "dropout"
_REALIZED = 512  # training images that realized noise is measured on
_DECAY, _AUGMENTATION = "weight decay", "augmentation"


@dataclass(frozen=True)
class TrainingNoiseSettings:
    """One network, trained plainly, with noise of several strengths and with dropout.

    Attributes:
        data: name of the data set.
        network: name of the network; it must take ``dropout``.
        noise: normalizers, ``batch``, ``weight``, ``analytic`` or ``group``, each with the values of
            ``n`` of the law in training; without noise each is there anyway.
        dropouts: rates of Monte-Carlo dropout, beside batch normalization.
        after: values of ``n`` of the law that is added to the plain network after training.
        members: plain networks with batch normalization in the largest ensemble.
        regularizers: of ``weight decay`` and ``augmentation``, those that are tried beside batch
            normalization, noise of ``regularized_noise`` and dropout of ``regularized_dropout``.
        regularized_noise: the ``n`` of that.
        regularized_dropout: the rate of that.
        decay: weight decay of that, of AdamW.
        per_example: values of ``n`` with which weight normalization is also trained with one draw for
            each example instead of one for each batch.
        seeds: each has its own images, networks and batches.
        num_train: training images.
        num_validation: images held out of the training set, for temperatures, ``n`` and rates.
        num_test: test images; None for all.
        training: how networks are trained.
        num_samples: draws per prediction, or passes with dropout.
        statistics_batches: batches of 256 training images for the statistics of a draw; None for all.
    """

    data: str = "fashion-mnist"
    network: str = "lenet-5"
    noise: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("batch", (4.0, 8.0, 16.0, 32.0)),
        ("weight", (4.0, 8.0, 16.0, 32.0)),
    )
    dropouts: tuple[Probability, ...] = (0.05, 0.1, 0.2, 0.3)
    after: tuple[float, ...] = (16.0, 64.0)
    members: Count = 4
    regularizers: tuple[str, ...] = ()
    regularized_noise: Positive = 8.0
    regularized_dropout: Probability = 0.1
    decay: Positive = 0.05
    per_example: tuple[float, ...] = ()
    seeds: tuple[SeedNumber, ...] = (0, 1, 2, 3, 4)
    num_train: Count | None = None
    num_validation: Count = 1_000
    num_test: Count | None = None
    training: Training = field(default_factory=lambda: Training(30, 32, 2e-3))
    num_samples: Count = 32
    statistics_batches: Count | None = 4

    def __post_init__(self) -> None:
        check_fields(self)
        check_data(self.data)
        check_network(self.network)
        check_seeds(self.seeds)
        names = [name for name, _ in self.noise]
        if len(set(names)) < len(names) or not set(names) <= set(_NORMALIZERS):
            raise OptionError(
                f"study: noise must have different ones of {', '.join(_NORMALIZERS)}, got "
                f"{', '.join(names)}."
            )
        if not set(self.regularizers) <= {_DECAY, _AUGMENTATION}:
            raise OptionError(
                f"study: regularizers are {_DECAY} and {_AUGMENTATION}, got "
                f"{', '.join(self.regularizers)}."
            )
        sizes = (*itertools.chain(*(n for _, n in self.noise)), *self.after, *self.per_example)
        if any(not n > 1 for n in sizes):
            raise OptionError(f"study: every n of noise must be above 1, got {min(sizes)}.")
        if not self.dropouts or min(self.dropouts) <= 0:
            raise OptionError("study: dropouts must be above 0, and at least one.")
        check_least("members", self.members, 2)


@dataclass(frozen=True)
class _Variant:
    """How a network is trained: a normalizer, noise or dropout, a regularizer."""

    normalizer: str = _BATCH
    noise: float | None = None
    dropout: float = 0.0
    beside: str = ""
    per_example: bool = False

    @property
    def name(self) -> str:
        """Of the job."""
        parts = [_DROPOUT if self.dropout else self.normalizer]
        parts += [] if self.noise is None else [f"n={self.noise:g}"]
        parts += [f"rate={self.dropout:g}"] if self.dropout else []
        parts += [self.beside] if self.beside else []
        parts += ["per example"] if self.per_example else []
        return ", ".join(parts)

    @property
    def level(self) -> float:
        """``n``, or the rate of dropout; 0 without either."""
        return self.dropout if self.noise is None else self.noise


@dataclass(frozen=True)
class TrainingNoise(Study):
    """What one network trained under noise is worth, in plain networks of an ensemble.

    Each seed has its own training, validation and test images and its own ensemble. All methods of a
    seed share images, initial weights and order of batches. A temperature for each method, ``n`` and
    rates are chosen on the validation images of the seed; test images only judge.
    """

    title: ClassVar[str] = "What noise in training is worth"

    name: str
    settings: TrainingNoiseSettings

    def jobs(self) -> Sequence[Job]:
        """One for each way to train and seed; the plain one trains the whole ensemble."""
        return [Job(name, seed) for seed in self.settings.seeds for name in self._variants()]

    def _variants(self) -> dict[str, _Variant]:
        settings = self.settings
        plain = _Variant()
        found = [plain]
        for normalizer, sizes in settings.noise:
            found += [_Variant(normalizer), *(_Variant(normalizer, n) for n in sizes)]
        found += [_Variant(dropout=rate) for rate in settings.dropouts]
        for beside in settings.regularizers:
            found += [
                _Variant(beside=beside),
                _Variant(noise=settings.regularized_noise, beside=beside),
                _Variant(dropout=settings.regularized_dropout, beside=beside),
            ]
        found += [_Variant("weight", n, per_example=True) for n in settings.per_example]
        return {variant.name: variant for variant in found}

    def run(self, job: Job, place: Place) -> Outcome:
        """Train what the job's name says, and judge all that can be predicted with it."""
        settings, seed = self.settings, job.seed
        data = load_images(settings.data, seed, place)
        data, validation = data.split_off(settings.num_validation, seed)
        data = data.subset(settings.num_train, settings.num_test, seed)
        variant = self._variants()[job.name]
        networks = _Networks(settings, data, validation, seed, place.device)
        made = networks.ensemble() if variant == _Variant() else networks.single(variant)
        rows = [Row(name, seed, values, condition) for name, condition, values in made]
        return Outcome(rows, note=data.note)

    def sections(self, results: Results) -> Sequence[Section]:
        """Methods beside ensembles; every strength of noise; other regularizers."""
        return sections(self.settings, results)


_Judged = tuple[str, Mapping[str, str | float], dict[str, float]]  # method, condition, values


@dataclass(frozen=True)
class _Networks:
    """The networks of one seed, and what they predict."""

    settings: TrainingNoiseSettings
    data: ImageData
    validation: Split
    seed: int
    device: str

    def ensemble(self) -> Iterator[_Judged]:
        """Plain batch normalization: alone, with noise added after training, and in ensembles."""
        settings = self.settings
        members = [self._train(_Variant(), member) for member in range(settings.members)]
        outputs = [self._outputs(m.model, m.guide, 1) for m in members]
        first = members[0]
        seconds = {"train_seconds": first.seconds}
        yield "batch", {}, self._score(first.model, outputs[0]) | seconds
        bank = collect_bank(
            first.model,
            self.data.train.x,
            settings.num_samples,
            settings.training.batch_size,
            seed=self.seed,
        )
        posterior = guides.MonteCarloBatchNorm(first.model, bank)
        yield "batch, own noise after training", {}, self._judge(first, posterior) | seconds
        for n in settings.after:
            law = guides.BatchNoise(first.model, n)
            values = self._judge(first, law) | seconds
            yield "batch, noise after training", {"level": n}, values
        for size in range(1, settings.members + 1):
            scores = [
                self._score(first.model, torch.cat(chosen))
                for chosen in itertools.combinations(outputs, size)
            ]
            # The average over all ensembles of the size: that of one draws its members by chance.
            mean = {key: sum(s[key] for s in scores) / len(scores) for key in scores[0]}
            mean["train_seconds"] = size * first.seconds
            yield "ensemble", {"level": size}, mean

    def single(self, variant: _Variant) -> Iterator[_Judged]:
        """One network, with and without averaging over its noise."""
        trained = self._train(variant)
        seconds = {"train_seconds": trained.seconds}
        condition: dict[str, str | float] = {}
        if variant.level:
            condition["level"] = variant.level
        if variant.beside:
            condition["beside"] = variant.beside
        name = _DROPOUT if variant.dropout else variant.normalizer
        if variant.dropout:
            outputs = self._dropout_outputs(trained)
            yield name, condition, self._score(trained.model, outputs) | seconds
            values = self._judge(trained, trained.guide) | seconds
            yield f"{name}, no averaging", condition, values
            return
        if variant.noise is None:
            yield name, condition, self._judge(trained, trained.guide) | seconds
            return
        name = f"{name}, noise"
        if variant.per_example:
            name += " per example"
        posterior = refresh_draws(
            trained.model,
            trained.guide,
            self.data.train.x,
            self.settings.num_samples,
            num_batches=self.settings.statistics_batches,
            seed=self.seed,
        )
        realized = self._realized(trained)
        yield name, condition, self._judge(trained, posterior) | seconds | realized
        middle = Draws(
            posterior.shift.mean(0, keepdim=True), posterior.scale.log().mean(0, True).exp()
        )
        yield f"{name}, no averaging", condition, self._judge(trained, middle) | seconds
        if variant.normalizer == _BATCH:
            values = self._judge(trained, trained.guide) | seconds
            yield f"{name}, neutral statistics", condition, values

    def _train(self, variant: _Variant, member: int = 0) -> Trained:
        settings = self.settings
        seed = self.seed + 10_000 * member
        training = settings.training
        if variant.beside == _DECAY:
            training = replace(training, weight_decay=settings.decay)
        if variant.beside == _AUGMENTATION:
            training = replace(training, augment=True)
        make: Callable[[NormalizationModel, float], guides.Guide] = guides.BatchNoise
        if variant.noise is None:
            make = _point
        options = {"dropout": variant.dropout} if variant.dropout else {}
        torch.manual_seed(seed)
        return train(
            make_network(settings.network, self.data, **options),
            _NORMALIZERS[variant.normalizer],
            make,
            self.data,
            training,
            noise=variant.noise or training.batch_size,
            seed=seed,
            device=self.device,
            draws=training.batch_size if variant.per_example else 1,
        )

    def _images(self, model: NormalizationModel) -> Tensor:
        return torch.cat([self.validation.x, self.data.test.x]).to(model.network.like.device)

    def _outputs(self, model: NormalizationModel, posterior: object, draws: int) -> Tensor:
        """Outputs for validation and test images, ``(draw, image, class)``."""
        prediction = predict(model, posterior, self._images(model), draws, seed=self.seed)
        return _kept(prediction)

    def _dropout_outputs(self, trained: Trained) -> Tensor:
        model = trained.model
        samples = self.settings.num_samples
        return _kept(predict_dropout(model, self._images(model), samples, seed=self.seed))

    def _judge(self, trained: Trained, posterior: object) -> dict[str, float]:
        point = isinstance(posterior, guides.Guide) and posterior.is_point
        draws = 1 if point else self.settings.num_samples
        if isinstance(posterior, Draws):
            draws = len(posterior.shift)
        return self._score(trained.model, self._outputs(trained.model, posterior, draws))

    def _realized(self, trained: Trained) -> dict[str, float]:
        """The realized ``n``: geometric mean over layers, on some training images."""
        layers = realized_noise(trained.model, trained.guide, self.data.train.x[:_REALIZED])
        logs = [math.log(layer.realized) for layer in layers]
        return {"realized_noise": math.exp(sum(logs) / len(logs))}

    def _score(self, model: NormalizationModel, outputs: Tensor) -> dict[str, float]:
        """Metrics as predicted, and at the temperature of the validation images."""
        held_out, y = self.validation.y.to(outputs.device), self.data.test.y.to(outputs.device)
        size = len(held_out)
        first = model.likelihood.predict(outputs[:, :size])
        test = model.likelihood.predict(outputs[:, size:])
        try:
            temperature = fit_temperature(first, held_out)
        except DataError:  # all are right, or none better than by chance
            temperature = 1.0
        values = classification_metrics(test.mean, y)
        tempered = classification_metrics(test.tempered(temperature).mean, y)
        chosen = classification_metrics(first.tempered(temperature).mean, held_out)
        return {
            **values,
            "calibrated_nll": tempered["nll"],
            "calibrated_ece": tempered["ece"],
            "validation_nll": chosen["nll"],
            "temperature": temperature,
            "passes": float(len(outputs)),
        }


def _point(model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.Point(model)


def _kept(prediction: Prediction) -> Tensor:
    assert prediction.outputs is not None
    return prediction.outputs
