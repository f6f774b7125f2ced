"""How studies train networks, make posteriors of them, and judge those."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyronorm import datasets, guides, likelihoods
from pyronorm.checks import Count, checked
from pyronorm.conversion import convert, data_dependent_start
from pyronorm.diagnostics import classification_metrics, out_of_distribution
from pyronorm.diagnostics.temperature import cross_fit
from pyronorm.display import displayed
from pyronorm.infer import Optimization, as_posterior, collect_bank, fit, predict
from pyronorm.latents import Draws, LatentNetwork
from pyronorm.likelihoods import Prediction, Scores
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import Normalizer
from pyronorm.priors import BatchNoise
from pyronorm.randomness import SeedNumber
from pyronorm.study.device import make_fabric
from pyronorm.study.methods import Method
from pyronorm.study.settings import Training

__all__ = [
    "Trained",
    "center",
    "choose_rate",
    "fit_model",
    "judge",
    "metrics",
    "stopwatch",
    "train",
]

_ORIENTED = ("digits", "mnist")  # a mirrored digit is none
_FOLDS = 10  # of the test data, for their temperatures
_START = 512  # images that set the scale of weight normalization


@displayed
@dataclass(eq=False, repr=False)
class Trained:
    """A trained network with its guide; its statistics bank is collected when first asked for."""

    model: NormalizationModel
    guide: guides.Guide
    seconds: float
    images: Tensor
    batch_size: Count
    seed: int
    _bank: dict[int, tuple[guides.StatisticsBank, float]] = field(default_factory=dict)

    @checked
    def bank(self, rows: Count) -> guides.StatisticsBank:
        """Statistics of training batches of the size it was trained with."""
        if rows not in self._bank:
            torch.manual_seed(self.seed)
            start = time.perf_counter()
            bank = collect_bank(self.model, self.images, rows, self.batch_size)
            self._bank[rows] = bank, time.perf_counter() - start
        return self._bank[rows][0]

    def posterior(self, method: Method, rows: Count) -> tuple[guides.Guide, float]:
        """What a method predicts with, and the seconds it took to get there."""
        if method.from_bank is None:
            return self.guide, self.seconds
        bank = self.bank(rows)
        start = time.perf_counter()
        guide = method.from_bank(self.model, bank)
        return guide, self.seconds + self._bank[rows][1] + time.perf_counter() - start


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Time what is in the block; afterwards the function gives its seconds."""
    start = time.perf_counter()
    end: list[float] = []
    yield lambda: (end[0] if end else time.perf_counter()) - start
    end.append(time.perf_counter())


@checked
def train(
    network: nn.Module,
    normalizer: Normalizer | None,
    make_guide: Callable[[NormalizationModel, float], guides.Guide],
    data: datasets.ImageData,
    training: Training,
    *,
    noise: float,
    seed: SeedNumber,
    device: str = "auto",
    draws: Count = 1,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Convert a network and train it with a guide.

    Args:
        network: the original network; it is not changed.
        normalizer: as in :func:`pyronorm.convert`; Analytic gets the moments of the training data,
            Weight a data-dependent start.
        make_guide: makes the guide from the model and ``noise``.
        data: the data.
        training: epochs, batches, optimizer.
        noise: ``n`` of the prior, and of the guide where it has one.
        seed: seeds draws and the order of batches.
        device: Fabric's accelerator: "auto", "cpu", "cuda", "mps".
        draws: independent draws of the latents per mini-batch.
        callbacks: as in :func:`pyronorm.fit`.
    """
    x = data.train.x
    if normalizer is not None:
        normalizer = normalizer.fitted(x)
    converted = convert(network, normalizer, example_input=x[:2])
    if normalizer is not None and normalizer.owns_linear:
        data_dependent_start(converted, x[:_START])
    return fit_model(
        LatentNetwork.of(converted),
        make_guide,
        data,
        training,
        noise=noise,
        seed=seed,
        device=device,
        draws=draws,
        callbacks=callbacks,
    )


def fit_model(
    network: LatentNetwork,
    make_guide: Callable[[NormalizationModel, float], guides.Guide],
    data: datasets.ImageData,
    training: Training,
    *,
    noise: float,
    seed: int,
    device: str = "auto",
    draws: Count = 1,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Train a network that is converted already, or a plain one, with a guide; see :func:`train`."""
    x, y = data.train
    model = NormalizationModel(
        network,
        likelihoods.Categorical(),
        num_data=len(y),
        prior=BatchNoise(noise),
        draws=draws,
    )
    guide = make_guide(model, noise)

    def optimizer(groups: list[dict[str, object]]) -> Optimizer:
        for group in groups:
            group["weight_decay"] = training.weight_decay if group["name"] == "network" else 0.0
        return AdamW(groups, lr=training.lr)

    def schedule(optimizer: Optimizer) -> CosineAnnealingLR:
        return CosineAnnealingLR(optimizer, training.epochs)

    history = fit(
        model,
        guide,
        (x, y),
        epochs=training.epochs,
        batch_size=training.batch_size,
        optimization=Optimization(optimizer=optimizer, scheduler=schedule),
        fabric=make_fabric(device, training.precision),
        callbacks=callbacks,
        augment=augmentation(data) if training.augment else None,
        seed=seed,
        progress=False,
    )
    return Trained(model, guide, history.seconds, x, training.batch_size, seed)


def augmentation(data: datasets.ImageData) -> datasets.PadCropFlip:
    """Shifts by up to an eighth of the image, and mirrors unless its mirror image is another class.

    Of 32 by 32 pixels by up to 4, of MNIST's by up to 3; digits are not mirrored.
    """
    return datasets.PadCropFlip(data.train.x.shape[-1] // 8, data.name not in _ORIENTED)


def choose_rate(
    make: Callable[[datasets.ImageData, Training], Trained],
    data: datasets.ImageData,
    training: Training,
    rates: Sequence[float],
    num_validation: Count,
    num_samples: Count,
    seed: int,
) -> tuple[Training, float]:
    """The training with the learning rate that is best on images held out of the training data.

    Args:
        make: trains a network on data in a way; called once for each rate.
        data: the data; test images are not looked at.
        training: everything but the rate.
        rates: to choose from; none leaves the training as it is.
        num_validation: images to hold out.
        num_samples: draws per prediction.
        seed: of the part that is held out, and of draws.

    Returns:
        The training with the rate of the least calibrated NLL, and the seconds that the choice took.
    """
    if not rates:
        return training, 0.0
    with stopwatch() as spent:
        part, validation = data.split_off(num_validation, seed)
        found = {}
        for rate in rates:
            trained = make(part, replace(training, lr=rate))
            values, _ = judge(trained.model, trained.guide, validation, num_samples, seed=seed)
            found[rate] = values["calibrated_nll"]
    return replace(training, lr=min(found, key=lambda rate: found[rate])), spent()


@checked
def center(
    model: NormalizationModel, guide: guides.Guide | Draws, num_samples: Count = 256
) -> Draws:
    """The mean shift and the geometric mean scale of draws, as a posterior of one draw."""
    draws = (
        guide
        if isinstance(guide, Draws)
        else as_posterior(guide, "center").draw(model, num_samples)
    )
    shift, scale = draws.shift.mean(0), draws.scale.log().mean(0).exp()
    return Draws(shift[None], scale[None])


def metrics(
    prediction: Prediction, y: Tensor, outside: Prediction | None = None
) -> dict[str, float]:
    """Metrics of a prediction for classes, and of telling it from one for outliers.

    By entropy and, with several draws, by mutual information. ``calibrated_nll``, ``_ece`` and
    ``_brier`` are at a temperature: each tenth of the examples at the one that is best for the rest, or
    at 1 where the data determine none.
    """
    y = y.to(prediction.mean.device)
    values = classification_metrics(prediction.mean, y) | _calibrated(prediction, y)
    if prediction.outputs is not None:
        values["nll"] = prediction.nll(y)  # probabilities would end at the smallest number there is
    if outside is not None:
        values |= out_of_distribution(prediction.entropy, outside.entropy)
        if prediction.outputs is not None and len(prediction.outputs) > 1:
            by = out_of_distribution(prediction.mutual_information, outside.mutual_information)
            values |= {f"{name}_information": value for name, value in by.items()}
    return values


def _calibrated(prediction: Prediction, y: Tensor) -> dict[str, float]:
    outputs, likelihood = prediction.outputs, prediction.likelihood
    if outputs is None or len(y) < _FOLDS:
        return {}
    # Fixed tenths that do not follow the order of the examples.
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).to(y.device)
    folds = order % _FOLDS
    fitted = cross_fit(prediction, y, folds, undetermined=1.0)
    scores = [
        likelihood.tempered(temperature).scores(outputs[:, folds == k], y[folds == k])
        for k, temperature in enumerate(fitted.by_fold)
    ]
    found = Scores.join(scores).metrics()
    return {
        "calibrated_nll": found["nll"],
        "calibrated_ece": found["ece"],
        "calibrated_brier": found["brier"],
        "temperature": fitted.temperature,
    }


@checked
def judge(
    model: NormalizationModel,
    guide: guides.Guide | Draws,
    test: datasets.Split,
    num_samples: Count,
    *,
    seed: SeedNumber,
    outliers: Tensor | None = None,
    repeats: Count = 1,
) -> tuple[dict[str, float], Prediction]:
    """Metrics of the predictive distribution on test data, and what averaging did to them.

    Args:
        model: the trained model.
        guide: the posterior.
        test: test images and classes.
        num_samples: draws; a point needs one, and given draws are all taken.
        seed: seeds the draws.
        outliers: images to tell from the test images by the entropy of the prediction.
        repeats: predictions timed, of which the fastest counts.

    Returns:
        What :func:`metrics` gives, ``nll_center`` where there are draws to average, and ``predict_ms``
        per draw; and the prediction.
    """
    device = model.network.like.device
    x, y = test.x.to(device), test.y.to(device)
    draws = len(guide) if isinstance(guide, Draws) else 1 if guide.is_point else num_samples
    elapsed = []
    for _ in range(repeats):
        torch.manual_seed(seed)
        start = time.perf_counter()
        prediction = predict(model, guide, x, draws)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # predict returns while the last batch is under way
        elapsed.append(time.perf_counter() - start)
    outside = None
    if outliers is not None:
        torch.manual_seed(seed)
        outside = predict(model, guide, outliers.to(device), draws, keep_samples=False)
    values = metrics(prediction, y, outside)
    if draws > 1:
        middle = predict(model, center(model, guide), x, 1, keep_samples=False)
        values["nll_center"] = classification_metrics(middle.mean, y)["nll"]
    values["predict_ms"] = 1e3 * min(elapsed) / draws
    return values, prediction
