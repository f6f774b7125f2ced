"""Train and judge methods on a data set, over several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyronorm import datasets, guides, likelihoods, networks
from pyronorm.diagnostics import classification_metrics, to_arviz
from pyronorm.errors import OptionError
from pyronorm.infer import collect_bank, fit, predict
from pyronorm.layers import Analytic, Weight, convert, data_dependent_start
from pyronorm.model import NormalizationModel
from pyronorm.priors import BatchNoise
from pyronorm.study.methods import Method
from pyronorm.study.result import Result, Run
from pyronorm.study.settings import Settings

__all__ = ["compare"]

_TIMED = 3  # predictions timed; the fastest counts


@dataclass
class _Trained:
    model: NormalizationModel
    guide: guides.Guide
    seconds: float
    bank: guides.StatisticsBank | None = None
    bank_seconds: float = 0.0


def compare(
    methods: Sequence[Method],
    settings: Settings | None = None,
    report: Callable[[str], None] | None = None,
) -> Result:
    """Run every method once per seed.

    Methods of one seed share split, initial weights, order of batches and budget; methods that
    predict from a statistics bank share the network it was collected from.

    Args:
        methods: the rows, from :func:`choose_methods`.
        settings: what they share; None for the defaults.
        report: called with the name of each job when it begins.

    Returns:
        Metrics of every run, predictions and ArviZ data of the first seed.

    Raises:
        OptionError: if there is no method.
    """
    settings = Settings() if settings is None else settings
    if not methods:
        raise OptionError("compare: needs at least one method.")
    runs: list[Run] = []
    idatas: dict[str, Any] = {}
    predictions: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for seed in settings.seeds:
        data = datasets.load(settings.data, seed)
        trained: dict[str, _Trained] = {}
        for method in methods:
            if report is not None:
                report(f"{method.name}, seed {seed}")
            if method.training not in trained:
                trained[method.training] = _train(method, data, settings, seed)
            base = trained[method.training]
            guide, seconds = _posterior(method, base, data, settings, seed)
            draws = 1 if isinstance(guide, guides.Point) else settings.num_samples
            device = base.model.latent_network.like.device
            x, y = (part.to(device) for part in data.test)
            elapsed = []
            for _ in range(_TIMED):
                torch.manual_seed(seed)
                start = time.perf_counter()
                prediction = predict(base.model, guide, x, draws, keep_samples=False)
                elapsed.append(time.perf_counter() - start)
            metrics = classification_metrics(prediction.mean, y)
            runs.append(Run(method.name, seed, metrics, seconds, min(elapsed) / draws))
            if seed == settings.seeds[0]:
                predictions[method.name] = (prediction.mean.cpu(), y.cpu())
                idatas[method.name] = to_arviz(
                    base.model, guide, (x, y), settings.arviz_samples, seed=seed
                )
    return Result(settings, tuple(methods), tuple(runs), predictions, idatas)


def _train(method: Method, data: datasets.ImageData, settings: Settings, seed: int) -> _Trained:
    torch.manual_seed(seed)
    original = networks.SmallConvNet(data.num_classes, data.train.x.shape[1])
    normalizer = method.normalizer
    if isinstance(normalizer, Analytic):
        normalizer = Analytic.from_data(data.train.x)
    network = convert(original, normalizer, example_input=data.train.x[:2])
    if isinstance(normalizer, Weight):
        data_dependent_start(network, data.train.x[:512])
    model = NormalizationModel(
        network,
        likelihoods.Categorical(),
        num_data=len(data.train.y),
        prior=BatchNoise(settings.batch_size),
    )
    guide = method.guide(model, settings.batch_size)

    def schedule(optimizer: Optimizer) -> CosineAnnealingLR:
        return CosineAnnealingLR(optimizer, settings.epochs)

    history = fit(
        model,
        guide,
        tuple(data.train),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer=lambda groups: Adam(groups, lr=settings.lr),
        scheduler=schedule,
        device=settings.device,
        seed=seed,
        progress=False,
    )
    return _Trained(model, guide, history.seconds)


def _posterior(
    method: Method, base: _Trained, data: datasets.ImageData, settings: Settings, seed: int
) -> tuple[guides.Guide, float]:
    """What the method predicts with, and the seconds it took to get there."""
    if method.from_bank is None:
        return base.guide, base.seconds
    start = time.perf_counter()
    if base.bank is None:
        torch.manual_seed(seed)
        base.bank = collect_bank(base.model, data.train.x, settings.bank_rows, settings.batch_size)
        base.bank_seconds = time.perf_counter() - start
    start = time.perf_counter()
    guide = method.from_bank(base.model, base.bank)
    return guide, base.seconds + base.bank_seconds + time.perf_counter() - start
