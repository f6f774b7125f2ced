"""What the batch size does to batch normalization, and what else does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from pyronorm import guides
from pyronorm.datasets import ImageData
from pyronorm.diagnostics import mode_gap, moment_batch_sizes, normalization_disturbance
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import Group, GroupWhitening, Normalizer, Weight
from pyronorm.study.architectures import check_network, make_network
from pyronorm.study.checks import check_data, check_least, check_seeds
from pyronorm.study.columns import columns
from pyronorm.study.images import load_images
from pyronorm.study.settings import Training
from pyronorm.study.study import Job, Outcome, Place, Plot, Results, Section, Study
from pyronorm.study.table import Better, Column, Row, Table, frame
from pyronorm.study.training import Trained, judge, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BatchSize", "BatchSizeSettings"]

_SIZE, _GROUPS = "batch size", "groups"
_BN, _MCBN = "batch, evaluation mode", "batch, MCBN"
_NOISE, _PLAIN = "weight, noise of n", "weight, no noise"
_GROUP, _WHITENING = "group", "group whitening"

_SHORT = columns("accuracy", "nll", "calibrated_nll", "ece")
_MAGNITUDE = (
    Column(
        "n_eff",
        "n, shift",
        0,
        Better.NEITHER,
        "Effective batch size: one over the variance of the shift in a bank of training batches; "
        "geometric mean over layers.",
    ),
    Column(
        "n_eff_scale",
        "n, scale",
        0,
        Better.NEITHER,
        "The same from the variance of the log variance.",
    ),
    Column(
        "disturbance",
        "SND",
        3,
        Better.NEITHER,
        "Stochastic normalization disturbance, over the root of the number of values: how far the rest "
        "of the batch moves an example, in standard deviations; mean over layers.",
    ),
    Column(
        "batch_nll",
        "NLL, batch mode",
        3,
        Better.LOWER,
        "Test NLL with the statistics of test batches of the training size, in nats.",
    ),
    Column(
        "gap",
        "evaluation - batch",
        3,
        Better.NEITHER,
        "NLL in evaluation mode minus NLL in batch mode on the same images: the mismatch of training "
        "and testing.",
    ),
)
_CONSTRAINTS = Column(
    "constraints",
    "constraint ratio",
    4,
    Better.NEITHER,
    "Constraints that normalization puts on an example over its values, in the layer where this is "
    "largest: g means and g variances with g groups, and with whitening the g(g-1)/2 covariances "
    "between groups too.",
)


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

    A job per batch size trains a network with batch normalization and one with weight normalization
    and explicit noise of the effective batch size that was measured in the first; a job per number of
    groups trains group normalization or group whitening at one batch size.
    """

    title: ClassVar[str] = "What batch size does"

    name: str
    settings: BatchSizeSettings

    def jobs(self) -> Sequence[Job]:
        """One per batch size or number of groups, and seed."""
        settings = self.settings
        names = [
            *(f"n={n}" for n in settings.batch_sizes),
            "weight",
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
        elif kind == "weight":
            trained = self._train(Weight(), _point, data, job.seed, place)
            rows = [self._judged(_PLAIN, trained, trained.guide, data, job.seed)]
        else:
            groups = int(number)
            group = kind == "group"
            normalizer: Normalizer = Group(groups) if group else GroupWhitening(groups)
            trained = self._train(normalizer, _point, data, job.seed, place)
            row = self._judged(
                _GROUP if group else _WHITENING, trained, trained.guide, data, job.seed
            )
            values = {
                **row.values,
                "constraints": self._constraints(
                    trained, data, 2 * groups if group else groups * (groups + 3) // 2
                ),
            }
            rows = [Row(row.method, job.seed, values, {_GROUPS: groups})]
        return Outcome(rows, note=data.note)

    def _train(
        self,
        normalizer: Normalizer | None,
        make_guide: Callable[[NormalizationModel, float], guides.Guide],
        data: ImageData,
        seed: int,
        place: Place,
        batch_size: int | None = None,
        noise: float | None = None,
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
            noise=size if noise is None else noise,
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
        return Row(method, seed, values, {} if size is None else {_SIZE: size})

    def _at_batch_size(self, n: int, data: ImageData, seed: int, place: Place) -> Iterator[Row]:
        """Batch normalization with batches of ``n``, and explicit noise of the size found there."""
        settings = self.settings
        trained = self._train(None, _point, data, seed, place, n)
        bank = trained.bank(settings.bank_rows)
        sizes = moment_batch_sizes(bank, seed=seed)
        n_eff = float(sizes.layer_shift.value.log().mean().exp())
        images = data.train.x[: max(settings.disturbance_images, 4 * n)]
        (disturbance,) = normalization_disturbance(
            trained.model.network, images, [n], num_draws=8, seed=seed
        )
        moved = disturbance.normalized.values()
        gap = mode_gap(trained.model, tuple(data.test), n, seed=seed)
        row = self._judged(_BN, trained, trained.guide, data, seed, n)
        magnitude = {
            "n_eff": n_eff,
            "n_eff_scale": float(sizes.layer_scale.value.log().mean().exp()),
            "disturbance": sum(moved) / len(moved),
            "batch_nll": gap.batch_loss,
            "gap": gap.loss_gap,
        }
        yield Row(row.method, seed, {**row.values, **magnitude}, row.condition)
        yield self._judged(
            _MCBN, trained, guides.MonteCarloBatchNorm(trained.model, bank), data, seed, n
        )
        noisy = self._train(Weight(), guides.BatchNoise, data, seed, place, noise=n_eff)
        yield self._judged(_NOISE, noisy, noisy.guide, data, seed, n)

    def _constraints(self, trained: Trained, data: ImageData, number: int) -> float:
        network = trained.model.network
        (found,) = normalization_disturbance(network, data.train.x[:2], [2], num_draws=2)
        return max(number / values for values in found.dims.values())

    def sections(self, results: Results) -> Sequence[Section]:
        """By batch size, and by number of groups."""
        settings, training = self.settings, self.settings.training
        size = "all" if settings.num_train is None else f"{settings.num_train:,}"
        text = (
            "How much noise do batches of a size inject, when does it help or hurt, and can explicit "
            "noise or groups of channels take its place?\n\n"
            f"Data `{settings.data}`, {size} training images, network `{settings.network}`, "
            f"{training.epochs} epochs of AdamW, annealed to 0 from {training.lr} at batch size "
            f"{training.batch_size}, times the root of the ratio at others. *Weight, noise of n* is "
            f"weight normalization trained with batch size {training.batch_size} and the batch-norm law "
            "as explicit noise, its n the effective batch size (shift, geometric mean over layers) "
            "measured in the network with batch normalization of that line's batch size; "
            f"{settings.num_samples} draws are averaged."
        )
        by_size = [row for row in results.rows if _SIZE in row.condition]
        by_groups = [row for row in results.rows if _GROUPS in row.condition]
        plain = [row for row in results.rows if row.method == _PLAIN]
        batch = [row for row in by_size if row.method == _BN]
        return [
            Section(
                "Batch size",
                text,
                [
                    Table("Noise of batches, by batch size", batch, _MAGNITUDE, by=(_SIZE,)),
                    Table(
                        "Predictions, by batch size",
                        by_size,
                        _SHORT,
                        by=(_SIZE, "method"),
                        within=(_SIZE,),
                    ),
                    Table("Without noise", plain, _SHORT),
                ],
                [
                    Plot(
                        "noise",
                        "Effective batch size and disturbance by batch size; bars: standard deviation "
                        "over seeds.",
                        partial(_draw_noise, batch),
                        (9.0, 4.0),
                    ),
                    Plot(
                        "batch-size",
                        "Test NLL by batch size; dashed: weight normalization without noise.",
                        partial(_draw_sizes, by_size, plain),
                    ),
                ]
                if by_size
                else [],
            ),
            Section(
                "Groups",
                "Group normalization and group whitening take statistics over the channels of an "
                "example: no noise, and more constraints with more groups. Trained with batch size "
                f"{training.batch_size}.",
                [
                    Table(
                        "By number of groups",
                        by_groups,
                        (*_SHORT, _CONSTRAINTS),
                        by=("method", _GROUPS),
                    )
                ],
                [Plot("groups", "Test NLL by groups.", partial(_draw_groups, by_groups))]
                if by_groups
                else [],
            ),
        ]


def _point(model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.Point(model)


def _curves(axes: Axes, rows: Sequence[Row], label: str, value: str) -> None:
    """A line per method, with the spread over seeds."""
    for method, group in frame(rows).groupby("method", sort=False):
        by_label = group.groupby(label)[value]
        axes.errorbar(
            by_label.mean().index,
            by_label.mean(),
            by_label.std() if group["seed"].nunique() > 1 else None,
            marker="o",
            markerfacecolor="none",
            capsize=3,
            label=method,
        )
    axes.set_xscale("log", base=2)
    values = sorted({row.condition[label] for row in rows})
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xlabel(label)


def _draw_noise(rows: Sequence[Row], figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    for value, label in (("n_eff", "from the shift"), ("n_eff_scale", "from the scale")):
        _curves(left, [replace(row, method=label) for row in rows], _SIZE, value)
    left.set_yscale("log")
    left.set_ylabel("effective batch size")
    left.legend(fontsize="small")
    _curves(right, rows, _SIZE, "disturbance")
    right.set_yscale("log")
    right.set_ylabel("disturbance (standard deviations)")


def _draw_sizes(rows: Sequence[Row], plain: Sequence[Row], figure: Figure) -> None:
    axes = figure.subplots()
    _curves(axes, rows, _SIZE, "nll")
    batch_mode = [replace(row, method="batch, batch mode") for row in rows if row.method == _BN]
    _curves(axes, batch_mode, _SIZE, "batch_nll")
    if plain:
        level = sum(row.values["nll"] for row in plain) / len(plain)
        axes.axhline(level, color="0.5", linestyle="--", label=_PLAIN)
    axes.set_ylabel("test NLL (nats)")
    axes.legend(fontsize="small")


def _draw_groups(rows: Sequence[Row], figure: Figure) -> None:
    axes = figure.subplots()
    _curves(axes, rows, _GROUPS, "nll")
    axes.set_ylabel("test NLL (nats)")
    axes.legend(fontsize="small")
