"""Uncertainty on MNIST: posteriors, ensembles and dropout, with letters as outliers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyronorm import guides
from pyronorm.baselines import predict_dropout
from pyronorm.conversion import convert
from pyronorm.datasets import CORRUPTIONS, ImageData, Split, corrupt
from pyronorm.errors import OptionError
from pyronorm.infer import Ensemble, predict
from pyronorm.latents import LatentNetwork
from pyronorm.likelihoods import Prediction
from pyronorm.study.architectures import check_network, make_network
from pyronorm.study.checks import check_data, check_least, check_outliers, check_seeds
from pyronorm.study.equivalents import curve_rows
from pyronorm.study.images import joint_note, load_images
from pyronorm.study.methods import METHODS, choose_methods
from pyronorm.study.settings import Training
from pyronorm.study.study import Job, Outcome, Place, Results, Section, Study
from pyronorm.study.table import Row
from pyronorm.study.training import Trained, fit_model, metrics, train
from pyronorm.study.uncertainty_mnist_report import BASELINE, ENSEMBLE, SEVERITY, SHOWN, report

__all__ = ["UncertaintyMNIST", "UncertaintyMNISTSettings"]

_Predictor = Callable[[Tensor], Prediction]
_Posterior = tuple[str, _Predictor, float]  # name, what predicts, seconds of training

_BATCH, _LONGER, _DROPOUT, _BOTH = "batch", "batch, longer", "dropout", "batch, dropout"


@dataclass(frozen=True)
class UncertaintyMNISTSettings:
    """Methods on one data set, with another for outliers.

    Attributes:
        data: name of the data set.
        outliers: name of the data set whose test images are to be told from those of ``data``.
        network: name of the network; it must take ``norm`` and ``dropout``.
        methods: names of explicit methods, see :func:`pyronorm.study.choose_methods`; batch
            normalization, ensembles and dropout are there anyway.
        seeds: one run per method and seed.
        num_train: training images; None for all.
        num_test: test images, of both sets; None for all.
        training: how networks are trained.
        members: networks in an ensemble; one network is also trained so many times longer.
        dropout: rate of dropout.
        noise: ``n`` of the prior and of fixed noise; None for the batch size.
        bank_rows: training batches in a statistics bank.
        num_samples: draws per prediction; in an ensemble they are shared out to the members.
        corruptions: names of :data:`pyronorm.datasets.CORRUPTIONS`; empty for no shift.
        severities: of the corruptions, 1 to 5.
        shift_images: test images that are corrupted.
    """

    data: str = "mnist"
    outliers: str = "notmnist"
    network: str = "lenet-5"
    methods: tuple[str, ...] = (
        "weight/point",
        "weight/fixed",
        "weight/mean-field",
        "weight/low-rank",
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    num_train: int | None = None
    num_test: int | None = None
    training: Training = field(default_factory=lambda: Training(60, 64, 1e-3))
    members: int = 5
    dropout: float = 0.5
    noise: float | None = None
    bank_rows: int = 128
    num_samples: int = 50
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    shift_images: int = 1000

    def __post_init__(self) -> None:
        check_data(self.data)
        check_outliers(self.outliers)
        check_network(self.network)
        for method in choose_methods(self.methods):
            if method.normalizer is None:
                raise OptionError(
                    f"study: {method.name} is judged with the ensemble anyway; methods are for "
                    "normalizers without batch statistics."
                )
        check_seeds(self.seeds)
        check_least("members", self.members, 2)
        check_least("bank_rows", self.bank_rows, 11)
        check_least("num_samples", self.num_samples, self.members)
        check_least("shift_images", self.shift_images, 1)
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise OptionError(
                    f"study: no corruption {name!r}; choose from {', '.join(CORRUPTIONS)}."
                )
        if not all(1 <= severity <= 5 for severity in self.severities):
            raise OptionError(f"study: severities must be from 1 to 5, got {self.severities}.")


@dataclass(frozen=True)
class UncertaintyMNIST(Study):
    """The stochastic batch normalization paper's table, with explicit posteriors beside it.

    A job trains the ensemble, whose first member is also judged alone; others train dropout with and
    without batch normalization; one per explicit method.
    """

    title: ClassVar[str] = "Uncertainty and outliers"

    name: str
    settings: UncertaintyMNISTSettings

    def jobs(self) -> Sequence[Job]:
        """One per training of a kind and seed."""
        explicit = (method.name for method in choose_methods(self.settings.methods))
        names = [_BATCH, _LONGER, _DROPOUT, _BOTH, *explicit]
        return [Job(name, seed) for seed in self.settings.seeds for name in names]

    def run(self, job: Job, place: Place) -> Outcome:
        """Train what the job's name says."""
        settings, seed = self.settings, job.seed
        data = load_images(settings.data, seed, place, settings.num_train, settings.num_test)
        strange = load_images(settings.outliers, seed, place, None, settings.num_test)
        outliers = strange.test.x
        jobs = {
            _BATCH: self._batch,
            _LONGER: self._longer,
            _DROPOUT: self._dropout,
            _BOTH: self._both,
        }
        method = jobs.get(job.name, partial(self._explicit, job.name))
        rows: list[Row] = []
        shifted = self._shifted(data.test, seed)
        arrays: dict[str, Any] = {"y": data.test.y.numpy()}
        for name, make, seconds in method(data, seed, place):
            torch.manual_seed(seed)
            inside, outside = make(data.test.x), make(outliers)
            values = metrics(inside, data.test.y, outside)
            values["error"] = 100 * (1 - values["accuracy"])
            rows.append(Row(name, seed, {**values, "train_seconds": seconds}))
            rows += _under_shift(name, seed, make, shifted, values["temperature"])
            if name == ENSEMBLE:
                outputs = inside.outputs
                assert outputs is not None
                members = [inside.likelihood.predict(output[None]) for output in outputs]
                rows += curve_rows(members, data.test.y, seed)
            if seed == settings.seeds[0] and name in SHOWN:
                arrays[f"{name} mean"] = inside.mean.cpu().numpy()
                arrays[f"{name} inside"] = inside.entropy.cpu().numpy()
                arrays[f"{name} outside"] = outside.entropy.cpu().numpy()
        return Outcome(rows, arrays, note=joint_note(data, strange))

    def _shifted(self, test: Split, seed: int) -> dict[int, list[Split]]:
        """Test images by severity, once for each corruption."""
        settings = self.settings
        x, y = test.x[: settings.shift_images], test.y[: settings.shift_images]
        return {
            severity: [
                Split(corrupt(x, name, severity, seed=seed), y) for name in settings.corruptions
            ]
            for severity in settings.severities
        }

    def _batch(self, data: ImageData, seed: int, place: Place) -> Iterator[_Posterior]:
        """Batch normalization alone, and in an ensemble."""
        settings = self.settings
        members = [
            self._train(BASELINE, data, seed, place, member) for member in range(settings.members)
        ]
        first, *_ = members
        draws = settings.num_samples
        for name in (BASELINE, "batch/mcbn", "batch/stochastic"):
            guide, seconds = first.posterior(METHODS[name], settings.bank_rows)
            yield name, partial(_predict, first, guide, draws), seconds
        for name, key in ((ENSEMBLE, BASELINE), ("ensemble, stochastic", "batch/stochastic")):
            posteriors = [m.posterior(METHODS[key], settings.bank_rows) for m in members]
            pairs = zip(members, posteriors, strict=True)
            ensemble = Ensemble((m.model, guide) for m, (guide, _) in pairs)
            each = 1 if key == BASELINE else draws // settings.members
            total = sum(seconds for _, seconds in posteriors)
            yield name, partial(_predict_ensemble, ensemble, each), total

    def _longer(self, data: ImageData, seed: int, place: Place) -> Iterator[_Posterior]:
        """One network for the time of an ensemble."""
        settings = self.settings
        training = replace(settings.training, epochs=settings.members * settings.training.epochs)
        study = replace(self, settings=replace(settings, training=training))
        trained = study._train(BASELINE, data, seed, place)
        name = f"batch/point, {settings.members} times longer"
        yield name, partial(_predict, trained, trained.guide, 1), trained.seconds

    def _dropout(self, data: ImageData, seed: int, place: Place) -> Iterator[_Posterior]:
        """Dropout without normalization."""
        settings = self.settings
        torch.manual_seed(seed)
        network = make_network(settings.network, data, norm=None, dropout=settings.dropout)
        trained = self._fit(LatentNetwork(network, plain=True), data, seed, place)
        yield "dropout/point", partial(_predict, trained, trained.guide, 1), trained.seconds
        yield (
            "dropout/mc",
            partial(_predict_dropout, trained, None, settings.num_samples),
            (trained.seconds),
        )

    def _both(self, data: ImageData, seed: int, place: Place) -> Iterator[_Posterior]:
        """Batch normalization and dropout."""
        settings = self.settings
        torch.manual_seed(seed)
        network = make_network(settings.network, data, dropout=settings.dropout)
        trained = self._fit(LatentNetwork.of(convert(network)), data, seed, place)
        draws = settings.num_samples
        yield "batch, dropout/point", partial(_predict, trained, trained.guide, 1), trained.seconds
        yield "batch, dropout/mc", partial(_predict_dropout, trained, None, draws), trained.seconds
        guide = guides.StochasticBatchNorm(trained.model, trained.bank(settings.bank_rows))
        name = "batch, dropout/mc, stochastic"
        yield name, partial(_predict_dropout, trained, guide, draws), trained.seconds

    def _explicit(
        self, name: str, data: ImageData, seed: int, place: Place
    ) -> Iterator[_Posterior]:
        """A normalizer with a guide."""
        trained = self._train(name, data, seed, place)
        predictor = partial(_predict, trained, trained.guide, self.settings.num_samples)
        yield name, predictor, trained.seconds

    def _train(
        self, method: str, data: ImageData, seed: int, place: Place, member: int = 0
    ) -> Trained:
        settings = self.settings
        chosen = METHODS[method]
        seed = seed + 10_000 * member
        torch.manual_seed(seed)
        return train(
            make_network(settings.network, data),
            chosen.normalizer,
            chosen.guide,
            data,
            settings.training,
            noise=settings.training.batch_size if settings.noise is None else settings.noise,
            seed=seed,
            device=place.device,
        )

    def _fit(self, network: LatentNetwork, data: ImageData, seed: int, place: Place) -> Trained:
        return fit_model(
            network,
            METHODS[BASELINE].guide,
            data,
            self.settings.training,
            noise=self.settings.training.batch_size,
            seed=seed,
            device=place.device,
        )

    def sections(self, results: Results) -> Sequence[Section]:
        """One table; rejection and outliers of some methods; equivalents; corrupted images."""
        return report(self.settings, results)


def _under_shift(
    method: str,
    seed: int,
    predictor: _Predictor,
    shifted: Mapping[int, Sequence[Split]],
    temperature: float,
) -> Iterator[Row]:
    """Means over corruptions, by severity."""
    for severity, splits in shifted.items():
        found = []
        for x, y in splits:
            torch.manual_seed(seed)
            prediction = predictor(x)
            tempered = prediction.tempered(temperature).metrics(y)
            values = prediction.metrics(y)
            values["error"] = 100 * (1 - values["accuracy"])
            found.append({**values, "shifted_nll": tempered["nll"], "shifted_ece": tempered["ece"]})
        if found:
            means = {name: sum(v[name] for v in found) / len(found) for name in found[0]}
            yield Row(method, seed, means, {SEVERITY: severity})


def _predict(trained: Trained, guide: guides.Guide, draws: int, x: Tensor) -> Prediction:
    draws = 1 if guide.is_point else draws
    return predict(trained.model, guide, x, draws)


def _predict_ensemble(ensemble: Ensemble, draws: int, x: Tensor) -> Prediction:
    return predict(ensemble.model, ensemble, x, draws)


def _predict_dropout(
    trained: Trained, guide: guides.Guide | None, draws: int, x: Tensor
) -> Prediction:
    return predict_dropout(trained.model, x, draws, posterior=guide)
