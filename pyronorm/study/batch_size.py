"""What the batch size does to batch normalization, and what else does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from pyro.distributions import Normal
from torch import Tensor

from pyronorm import guides
from pyronorm.datasets import ImageData
from pyronorm.diagnostics import (
    mode_gap,
    moment_batch_sizes,
    normalization_disturbance,
    realized_noise,
)
from pyronorm.distributions import InverseChi
from pyronorm.latents import LatentSpace
from pyronorm.laws import Independent, Law
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import Group, GroupWhitening, Normalizer, Weight
from pyronorm.priors import Prior
from pyronorm.study.architectures import check_network, make_network
from pyronorm.study.batch_size_report import (
    BN,
    GROUP,
    GROUPS,
    MCBN,
    NOISE,
    PLAIN,
    SIZE,
    WHITENING,
    report,
)
from pyronorm.study.checks import check_data, check_least, check_seeds
from pyronorm.study.images import load_images
from pyronorm.study.settings import Training
from pyronorm.study.study import Job, Outcome, Place, Results, Section, Study
from pyronorm.study.table import Row
from pyronorm.study.training import Trained, judge, train

__all__ = ["BatchSize", "BatchSizeSettings"]

_REALIZED_IMAGES = 512
_LEAST = 3.0  # values: with fewer a scale has no mean


@dataclass(frozen=True)
class BatchSizeSettings:
    """Networks that differ in what they normalize with.

    Attributes:
        data: name of the data set.
        network: name of the network.
        seeds: one network per seed and condition.
        num_train: training images; None for all.
        num_test: test images; None for all.
        training: epochs and, for ``training.batch_size``, the learning rate; other batch sizes get it
            times the root of the ratio.
        batch_sizes: batch sizes of batch normalization.
        groups: numbers of groups of group normalization.
        whitening_groups: numbers of groups of group whitening.
        bank_rows: training batches in a statistics bank.
        num_samples: draws per prediction.
        disturbance_images: training images that the disturbance is measured on; at least four
            batches are, since batches out of few images are too much alike.
    """

    data: str = "fashion-mnist"
    network: str = "small-conv"
    seeds: tuple[int, ...] = (0, 1, 2)
    num_train: int | None = None
    num_test: int | None = None
    training: Training = field(default_factory=lambda: Training(20, 32, 2e-3))
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)
    groups: tuple[int, ...] = (1, 2, 4, 8, 16)
    whitening_groups: tuple[int, ...] = (2, 4, 8)
    bank_rows: int = 64
    num_samples: int = 32
    disturbance_images: int = 256

    def __post_init__(self) -> None:
        check_data(self.data)
        check_network(self.network)
        check_seeds(self.seeds)
        check_least("bank_rows", self.bank_rows, 20)  # for an effective batch size
        check_least("num_samples", self.num_samples, 1)
        for size in self.batch_sizes:
            check_least("batch_sizes", size, 2)
        check_least("disturbance_images", self.disturbance_images, 2)


@dataclass(frozen=True)
class BatchSize(Study):
    """Batch normalization at several batch sizes, against what can take the place of its batches.

    A job per batch size trains a network with batch normalization, and with the same batches two with
    weight normalization: without noise, and with explicit noise that has in each layer the variance of
    the shift and that of the log scale which were measured in the first. A job per number of groups
    trains group normalization or group whitening at one batch size.
    """

    title: ClassVar[str] = "What batch size does"

    name: str
    settings: BatchSizeSettings

    def jobs(self) -> Sequence[Job]:
        """One per batch size or number of groups, and seed."""
        settings = self.settings
        names = [
            *(f"n={n}" for n in settings.batch_sizes),
            *(f"group={g}" for g in settings.groups),
            *(f"whitening={g}" for g in settings.whitening_groups),
        ]
        return [Job(name, seed) for seed in settings.seeds for name in names]

    def run(self, job: Job, place: Place) -> Outcome:
        """Train what the job's name says."""
        settings = self.settings
        data = load_images(settings.data, job.seed, place, settings.num_train, settings.num_test)
        kind, _, number = job.name.partition("=")
        if kind == "n":
            rows = list(self._at_batch_size(int(number), data, job.seed, place))
        else:
            groups = int(number)
            group = kind == "group"
            normalizer: Normalizer = Group(groups) if group else GroupWhitening(groups)
            trained = self._train(normalizer, _point, data, job.seed, place)
            row = self._judged(
                GROUP if group else WHITENING, trained, trained.guide, data, job.seed
            )
            values = {
                **row.values,
                "constraints": self._constraints(
                    trained, data, 2 * groups if group else groups * (groups + 3) // 2
                ),
            }
            rows = [Row(row.method, job.seed, values, {GROUPS: groups})]
        return Outcome(rows, note=data.note)

    def _train(
        self,
        normalizer: Normalizer | None,
        make_guide: Callable[[NormalizationModel, float], guides.Guide],
        data: ImageData,
        seed: int,
        place: Place,
        batch_size: int | None = None,
    ) -> Trained:
        training = self.settings.training
        size = training.batch_size if batch_size is None else batch_size
        lr = training.lr * math.sqrt(size / training.batch_size)
        torch.manual_seed(seed)
        return train(
            make_network(self.settings.network, data),
            normalizer,
            make_guide,
            data,
            replace(training, batch_size=size, lr=lr),
            noise=size,
            seed=seed,
            device=place.device,
        )

    def _judged(
        self,
        method: str,
        trained: Trained,
        guide: guides.Guide,
        data: ImageData,
        seed: int,
        size: int | None = None,
    ) -> Row:
        values, _ = judge(trained.model, guide, data.test, self.settings.num_samples, seed=seed)
        del values["predict_ms"]
        if not guide.is_point:
            noise = realized_noise(trained.model, guide, data.train.x[:_REALIZED_IMAGES])
            values["realized_noise"] = _geometric_mean(layer.realized for layer in noise)
        return Row(method, seed, values, {} if size is None else {SIZE: size})

    def _at_batch_size(self, n: int, data: ImageData, seed: int, place: Place) -> Iterator[Row]:
        """Batch normalization with batches of ``n``, and explicit noise of the size found there."""
        settings = self.settings
        trained = self._train(None, _point, data, seed, place, n)
        bank = trained.bank(settings.bank_rows)
        sizes = moment_batch_sizes(bank, seed=seed)
        by_layer = [v.value.tolist() for v in (sizes.layer_shift, sizes.layer_scale)]
        n_shift, n_scale = (tuple(max(v, _LEAST) for v in values) for values in by_layer)
        images = data.train.x[: max(settings.disturbance_images, 4 * n)]
        (disturbance,) = normalization_disturbance(
            trained.model.network, images, [n], num_draws=8, seed=seed
        )
        moved = disturbance.normalized.values()
        gap = mode_gap(trained.model, tuple(data.test), n, seed=seed)
        row = self._judged(BN, trained, trained.guide, data, seed, n)
        magnitude = {
            "n_eff": _geometric_mean(n_shift),
            "n_eff_scale": _geometric_mean(n_scale),
            "disturbance": sum(moved) / len(moved),
            "batch_nll": gap.batch_loss,
            "gap": gap.loss_gap,
        }
        yield Row(row.method, seed, {**row.values, **magnitude}, row.condition)
        yield self._judged(
            MCBN, trained, guides.MonteCarloBatchNorm(trained.model, bank), data, seed, n
        )
        law = _LayerNoise(n_shift, n_scale)
        for method, make in ((PLAIN, _point), (NOISE, partial(_fixed, law))):
            other = self._train(Weight(), make, data, seed, place, n)
            yield self._judged(method, other, other.guide, data, seed, n)

    def _constraints(self, trained: Trained, data: ImageData, number: int) -> float:
        network = trained.model.network
        (found,) = normalization_disturbance(network, data.train.x[:2], [2], num_draws=2)
        return max(number / values for values in found.dims.values())

    def sections(self, results: Results) -> Sequence[Section]:
        """By batch size, and by number of groups."""
        return report(self.settings, results)


@dataclass(frozen=True)
class _LayerNoise(Prior):
    """Batch noise of another number of values in each layer, for shifts and for scales."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def law(self, space: LatentSpace, like: Tensor) -> Law:
        """Normal shifts, scales as of a batch's standard deviation."""
        sizes = torch.tensor(space.sizes)
        n_shift, n_scale = (
            like.new_tensor(n).repeat_interleave(sizes.to(like.device))
            for n in (self.shift, self.scale)
        )
        shift = Normal(torch.zeros_like(n_shift), n_shift.rsqrt(), validate_args=False).to_event(1)
        scale: Any = InverseChi(n_scale - 1, n_scale.sqrt(), validate_args=False)
        return Independent(shift, scale.to_event(1))


def _point(model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.Point(model)


def _fixed(prior: Prior, model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.Fixed(model, prior)


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
