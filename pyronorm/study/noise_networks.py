"""Networks trained with noise or dropout in several ways, and what each predicts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pyronorm import guides
from pyronorm.baselines import CollectWeights, predict_dropout
from pyronorm.datasets import ImageData, Split
from pyronorm.diagnostics import classification_metrics, fit_temperature, realized_noise
from pyronorm.errors import DataError
from pyronorm.infer import (
    NoiseSchedule,
    Optimization,
    StandardizedLatents,
    fit,
    predict,
    refresh_draws,
)
from pyronorm.latents import Draws
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import Analytic, Group, Normalizer, Weight
from pyronorm.study.architectures import make_network
from pyronorm.study.device import make_fabric
from pyronorm.study.settings import Training
from pyronorm.study.training import Trained, train

__all__ = [
    "AUGMENTATION",
    "BATCH",
    "DECAY",
    "DROPOUT",
    "KINDS",
    "NORMALIZERS",
    "PER_EXAMPLE",
    "RELATIVE",
    "SCALE_ONLY",
    "SHIFT_ONLY",
    "SWAG",
    "SWAG_RATES",
    "WARM_UP",
    "NoiseNetworks",
    "Way",
]

BATCH, DROPOUT = "batch", "dropout"
NORMALIZERS: Mapping[str, Normalizer | None] = MappingProxyType(
    {BATCH: None, "weight": Weight(), "analytic": Analytic(), "group": Group(2)}
)
DECAY, AUGMENTATION = "weight decay", "augmentation"
PER_EXAMPLE, RELATIVE, WARM_UP = "per example", "relative", "warm-up"
SHIFT_ONLY, SCALE_ONLY = "shift only", "scale only"
KINDS = (PER_EXAMPLE, RELATIVE, SHIFT_ONLY, SCALE_ONLY, WARM_UP)
SWAG = "SWAG, all weights"  # instead of noise
SWAG_RATES = (0.003, 0.01, 0.03)  # of SGD, after the training
_REALIZED = 512  # training images for realized noise, and for what relative noise is relative to
_QUIET = 64  # times the n of the noise, where a warm-up begins


@dataclass(frozen=True)
class Way:
    """How a network is trained: a normalizer, noise or dropout, a regularizer, a learning rate.

    Attributes:
        normalizer: one of :data:`NORMALIZERS`.
        noise: ``n`` of the law; None for none.
        dropout: its rate; 0 for none.
        beside: the regularizers beside it.
        kind: how the noise is drawn, one of :data:`KINDS`; empty for shift and scale, one draw for
            each batch. Without noise, :data:`SWAG`.
        lr: the learning rate; None for that of all.
    """

    normalizer: str = BATCH
    noise: float | None = None
    dropout: float = 0.0
    beside: str = ""
    kind: str = ""
    lr: float | None = None

    @property
    def name(self) -> str:
        """Of the job."""
        parts = [DROPOUT if self.dropout else self.normalizer]
        parts += [] if self.noise is None else [f"n={self.noise:g}"]
        parts += [f"rate={self.dropout:g}"] if self.dropout else []
        parts += [part for part in (self.beside, self.kind) if part]
        parts += [] if self.lr is None else [f"lr={self.lr:g}"]
        return ", ".join(parts)

    @property
    def method(self) -> str:
        """What is done, whatever its strength, regularizers and learning rate."""
        name = DROPOUT if self.dropout else self.normalizer
        name += "" if self.noise is None else ", noise"
        return f"{name} {self.kind}" if self.kind else name

    @property
    def level(self) -> float:
        """``n``, or the rate of dropout; 0 without either."""
        return self.dropout if self.noise is None else self.noise


@dataclass(frozen=True)
class NoiseNetworks:
    """The networks of one seed, trained in several ways, and what they predict.

    Attributes:
        network: its name.
        training: how all are trained.
        num_samples: draws per prediction, or passes with dropout.
        statistics_batches: batches of 256 training images for the statistics of a draw; None for all.
        decay: weight decay where it is the regularizer.
        warm_up: epochs within which noise grows where it has a warm-up.
        data: training and test images.
        validation: images that temperatures are fitted on.
        seed: of networks, batches and draws.
        device: as in :class:`~pyronorm.study.Place`.
    """

    network: str
    training: Training
    num_samples: int
    statistics_batches: int | None
    decay: float = 0.05
    warm_up: float = 10.0
    _: KW_ONLY
    data: ImageData
    validation: Split
    seed: int
    device: str

    def judge_way(self, way: Way) -> Iterator[tuple[str, dict[str, float]]]:
        """Train one network, and judge it with and without averaging over its noise.

        Yields:
            What the reading adds to the name of the method, and metrics.
        """
        trained = self.train(way)
        seconds = {"train_seconds": trained.seconds}
        if way.dropout:
            yield "", self.score(trained.model, self._dropout_outputs(trained)) | seconds
            yield ", no averaging", self.judge(trained, trained.guide) | seconds
            return
        if way.kind == SWAG:
            yield "", self._judge_swag(trained)
            return
        if way.noise is None:
            yield "", self.judge(trained, trained.guide) | seconds
            return
        posterior = refresh_draws(
            trained.model,
            trained.guide,
            self.data.train.x,
            self.num_samples,
            num_batches=self.statistics_batches,
            seed=self.seed,
        )
        yield "", self.judge(trained, posterior) | seconds | self._realized(trained)
        middle = Draws(
            posterior.shift.mean(0, keepdim=True), posterior.scale.log().mean(0, True).exp()
        )
        yield ", no averaging", self.judge(trained, middle) | seconds
        if way.normalizer == BATCH:
            yield ", neutral statistics", self.judge(trained, trained.guide) | seconds

    def train(self, way: Way, member: int = 0) -> Trained:
        """Train a network; those of one number have the same initial weights and batches."""
        seed = self.seed + 10_000 * member
        training = self.training
        if DECAY in way.beside:
            training = replace(training, weight_decay=self.decay)
        if AUGMENTATION in way.beside:
            training = replace(training, augment=True)
        if way.lr is not None:
            training = replace(training, lr=way.lr)
        options = {"dropout": way.dropout} if way.dropout else {}
        torch.manual_seed(seed)
        return train(
            make_network(self.network, self.data, **options),
            NORMALIZERS[way.normalizer],
            _guide_maker(way),
            self.data,
            training,
            noise=way.noise or training.batch_size,
            seed=seed,
            device=self.device,
            draws=training.batch_size if way.kind == PER_EXAMPLE else 1,
            callbacks=self._callbacks(way),
        )

    def _judge_swag(self, trained: Trained) -> dict[str, float]:
        """A third of the training more with SGD, at the rate that is best on validation images."""
        training = self.training
        found = []
        for rate in SWAG_RATES:
            model = copy.deepcopy(trained.model)
            swag = CollectWeights()
            sgd = Optimization(optimizer=partial(_sgd, lr=rate, decay=training.weight_decay))
            history = fit(
                model,
                guides.Point(model),
                tuple(self.data.train),
                epochs=max(1, training.epochs // 3),
                batch_size=training.batch_size,
                optimization=sgd,
                fabric=make_fabric(self.device, training.precision),
                callbacks=[swag],
                seed=self.seed,
                progress=False,
            )
            networks = swag.posterior(model).draw_networks(
                self.data.train.x,
                self.num_samples,
                num_batches=self.statistics_batches,
                seed=self.seed,
            )
            values = self.score(model, self.outputs(networks.model, networks, 1))
            seconds = trained.seconds + history.seconds
            found.append(values | {"train_seconds": seconds, "rate": rate})
        return min(found, key=lambda values: values["validation_nll"])

    def _callbacks(self, way: Way) -> list[Any]:
        if way.kind == RELATIVE:
            return [StandardizedLatents(self.data.train.x[:_REALIZED])]
        if way.kind == WARM_UP and way.noise is not None:
            n, epochs = way.noise, self.warm_up
            return [NoiseSchedule(lambda epoch: n * _QUIET ** max(0.0, 1 - epoch / epochs))]
        return []

    def outputs(self, model: NormalizationModel, posterior: object, draws: int) -> Tensor:
        """Outputs for validation and test images, ``(draw, image, class)``."""
        prediction = predict(model, posterior, self._images(model), draws, seed=self.seed)
        return _kept(prediction)

    def judge(self, trained: Trained, posterior: object) -> dict[str, float]:
        """Metrics of a posterior's prediction."""
        point = isinstance(posterior, guides.Guide) and posterior.is_point
        draws = 1 if point else self.num_samples
        if isinstance(posterior, Draws):
            draws = len(posterior.shift)
        return self.score(trained.model, self.outputs(trained.model, posterior, draws))

    def score(self, model: NormalizationModel, outputs: Tensor) -> dict[str, float]:
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

    def _images(self, model: NormalizationModel) -> Tensor:
        return torch.cat([self.validation.x, self.data.test.x]).to(model.network.like.device)

    def _dropout_outputs(self, trained: Trained) -> Tensor:
        model = trained.model
        return _kept(predict_dropout(model, self._images(model), self.num_samples, seed=self.seed))

    def _realized(self, trained: Trained) -> dict[str, float]:
        """The realized ``n``: geometric mean over layers, on some training images."""
        layers = realized_noise(trained.model, trained.guide, self.data.train.x[:_REALIZED])
        logs = [math.log(layer.realized) for layer in layers if math.isfinite(layer.realized)]
        # Noise of the scale alone has none where the mean is 0.
        return {"realized_noise": math.exp(sum(logs) / len(logs))} if logs else {}


def _guide_maker(way: Way) -> Callable[[NormalizationModel, float], guides.Guide]:
    if way.noise is None:
        return _point
    if way.kind == SHIFT_ONLY:
        return partial(guides.BatchNoise, scale=False)
    if way.kind == SCALE_ONLY:
        return partial(guides.BatchNoise, shift=False)
    return guides.BatchNoise


def _sgd(groups: list[dict[str, Any]], lr: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=decay)


def _point(model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.Point(model)


def _kept(prediction: Prediction) -> Tensor:
    assert prediction.outputs is not None
    return prediction.outputs
