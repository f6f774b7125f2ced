"""What a posterior adds to a network that is trained already."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pyronorm import guides
from pyronorm.datasets import ImageData, Split
from pyronorm.diagnostics import fit_temperature, realized_noise
from pyronorm.infer import collect_bank, fit, predict, predictive_nll, refresh_draws
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel
from pyronorm.study.answer import answer
from pyronorm.study.architectures import check_network, make_network
from pyronorm.study.checks import check_data, check_least, check_outliers, check_seeds
from pyronorm.study.columns import COLUMNS, columns
from pyronorm.study.device import make_fabric
from pyronorm.study.equivalents import CURVE, curve_rows, curve_table, equivalents_text
from pyronorm.study.images import joint_note, load_images
from pyronorm.study.settings import Training
from pyronorm.study.study import Job, Outcome, Place, Plot, Results, Section, Study
from pyronorm.study.table import Row, Table, frame
from pyronorm.study.training import Trained, judge, metrics, stopwatch, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pretrained", "PretrainedSettings"]

_PLAIN = "plain"
_MARGIN = 0.005  # nats: less does not matter
_REALIZED_IMAGES = 512
_REFRESHED = 4  # batches of 256 training images for the statistics of each draw
_JUDGED = (
    *("accuracy", "nll", "calibrated_nll", "ece", "calibrated_ece", "brier", "calibrated_brier"),
    *("aurc", "auroc", "fpr95", "auroc_information", "fpr95_information"),
    *("seconds", "share", "chosen", "realized_noise"),
)
_OF_SIZE = ("values", "accuracy", "nll", "calibrated_nll", "ece", "auroc", "fpr95")

_MakeGuide = Callable[[NormalizationModel], guides.Guide]


def _mean_field(model: NormalizationModel, neutral: bool) -> guides.Guide:
    return guides.MeanField.from_batch_size(model, 64.0, neutral=neutral)


def _low_rank(model: NormalizationModel, neutral: bool) -> guides.Guide:
    return guides.LowRank(model, rank=10, init_std=0.1, neutral=neutral)


_FITTED: dict[str, _MakeGuide] = {
    # From large to small: where n is small, gradients are too heavy-tailed to leave it.
    "learned n": lambda model: guides.EffectiveBatchSize(model, 256.0),
    "mean field, noise only": partial(_mean_field, neutral=True),
    "low rank, noise only": partial(_low_rank, neutral=True),
    "mean field": partial(_mean_field, neutral=False),
}


@dataclass(frozen=True)
class PretrainedSettings:
    """A network with batch normalization, and the posteriors it is given after training.

    Attributes:
        data: name of the data set.
        outliers: name of the data set whose test images are to be told from those of ``data``.
        network: name of the network.
        seeds: one network per seed.
        num_train: training images; None for all that validation leaves.
        num_validation: images held out of the training set to choose ``n`` and the temperature.
        num_test: test images, of both sets; None for all.
        training: how the network is trained.
        posterior_epochs: passes over the training images to fit a posterior, network frozen.
        posterior_lr: learning rate of that.
        prior: ``n`` of the prior.
        sizes: values of ``n`` of the law to choose from.
        bank_sizes: batch sizes of Monte-Carlo batch normalization to choose from.
        members: plain networks of a seed in the largest ensemble that methods are compared with, the
            network itself among them.
        bank_rows: training batches in a statistics bank.
        num_samples: draws per prediction.
    """

    data: str = "fashion-mnist"
    outliers: str = "mnist"
    network: str = "small-conv"
    seeds: tuple[int, ...] = (0, 1, 2)
    num_train: int | None = None
    num_validation: int = 5000
    num_test: int | None = None
    training: Training = field(default_factory=lambda: Training(30, 128))
    posterior_epochs: int = 10
    posterior_lr: float = 3e-3
    prior: float = 32.0
    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    bank_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 512, 2048)
    members: int = 5
    bank_rows: int = 64
    num_samples: int = 32

    def __post_init__(self) -> None:
        check_data(self.data)
        check_outliers(self.outliers)
        check_network(self.network)
        check_seeds(self.seeds)
        for name in ("num_validation", "posterior_epochs", "num_samples"):
            check_least(name, getattr(self, name), 1)
        check_least("bank_rows", self.bank_rows, 11)
        check_least("members", self.members, 1)
        for name in ("sizes", "bank_sizes"):
            for size in getattr(self, name):
                check_least(name, size, 2)


@dataclass(frozen=True)
class Pretrained(Study):
    """Take a trained network with batch normalization as it is, and only add a posterior.

    One job per seed: one training, all posteriors after it. ``n`` of the fixed law, the batch size of
    Monte-Carlo batch normalization and the temperature are chosen on validation images.
    """

    title: ClassVar[str] = "A posterior for a trained network"

    name: str
    settings: PretrainedSettings

    def jobs(self) -> Sequence[Job]:
        """One per seed."""
        return [Job("pretrained", seed) for seed in self.settings.seeds]

    def run(self, job: Job, place: Place) -> Outcome:
        """Train, then judge every posterior."""
        settings, seed = self.settings, job.seed
        data = load_images(settings.data, seed, place)
        data, validation = data.split_off(settings.num_validation, seed)
        data = data.subset(settings.num_train, settings.num_test, seed)
        strange = load_images(settings.outliers, seed, place, None, settings.num_test)
        outliers = strange.test.x
        trained, *others = (
            self._train(data, seed + 10_000 * member, place) for member in range(settings.members)
        )
        posteriors = _Posteriors(settings, trained, data, validation, outliers, seed, place.device)
        plain = [predict(t.model, t.guide, data.test.x, 1) for t in (trained, *others)]
        curve = curve_rows(plain, data.test.y, seed)
        return Outcome(
            [*posteriors.given(), *posteriors.of_sizes(), *posteriors.fitted(), *curve],
            note=joint_note(data, strange),
        )

    def _train(self, data: ImageData, seed: int, place: Place) -> Trained:
        settings = self.settings
        torch.manual_seed(seed)
        return train(
            make_network(settings.network, data),
            None,
            lambda model, noise: guides.Point(model),
            data,
            settings.training,
            noise=settings.prior,
            seed=seed,
            device=place.device,
        )

    def sections(self, results: Results) -> Sequence[Section]:
        """Methods beside the plain network; ``n`` of the batch noise by itself."""
        settings, training = self.settings, self.settings.training
        size = "all other" if settings.num_train is None else f"{settings.num_train:,}"
        text = (
            "Take a trained network with batch normalization as it is: which posterior over its "
            "normalization statistics improves its predictions, and what does that cost?\n\n"
            f"Data `{settings.data}`, {size} training images, network `{settings.network}` trained for "
            f"{training.epochs} epochs with batch size {training.batch_size} (AdamW from {training.lr} "
            f"annealed to 0) and frozen. {settings.num_validation:,} validation images choose n of the "
            "fixed law, the batch size of Monte-Carlo batch normalization, and the temperature. "
            f"Posteriors are fitted to the training images in {settings.posterior_epochs} epochs, prior "
            f"`BatchNoise({settings.prior:g})`; *noise only* holds shift and scale at 0 and 1 on "
            "average; *statistics per draw* has population statistics estimated with the draw in force. "
            f"{settings.num_samples} draws per prediction. Out-of-distribution images: "
            f"`{settings.outliers}`."
        )
        by_method = [row for row in results.rows if not row.condition]
        by_size = [row for row in results.rows if row.condition and row.method != CURVE]
        plain = [row for row in by_method if row.method == _PLAIN]
        tables = [
            Table(
                "Posteriors of one trained network", by_method, columns(*_JUDGED), baseline=_PLAIN
            ),
            Table(
                "Batch noise of size n",
                by_size,
                columns(*_OF_SIZE),
                by=("method", "n"),
            ),
        ]
        plot = Plot(
            "size",
            "Test NLL, as it is and at its own temperature, by the values that scatter as much; "
            "means over seeds, dashed: the network without noise.",
            partial(_draw_sizes, by_size, plain),
            (9.0, 4.0),
        )
        found = answer(tables[0], COLUMNS["calibrated_nll"], _MARGIN)
        sections = [Section("Results", text, tables, [plot] if by_size else [], found)]
        if worth := equivalents_text(results.rows):
            table = curve_table(results.rows)
            sections.append(Section("In units of plain networks", worth, [table]))
        return sections


@dataclass(frozen=True)
class _Posteriors:
    """The posteriors of one trained network, judged on its test images."""

    settings: PretrainedSettings
    trained: Trained
    data: ImageData
    validation: Split
    outliers: Tensor
    seed: int
    device: str

    def row(
        self, method: str, guide: guides.Guide | Draws, seconds: float, n: int | None = None
    ) -> Row:
        """Judge a posterior that took so many seconds after training."""
        values, _ = judge(
            self.trained.model,
            guide,
            self.data.test,
            self.settings.num_samples,
            seed=self.seed,
            outliers=self.outliers,
        )
        del values["predict_ms"]
        if method != _PLAIN:
            noise = realized_noise(self.trained.model, guide, self.data.train.x[:_REALIZED_IMAGES])
            values["realized_noise"] = _geometric_mean([layer.realized for layer in noise])
        condition = {} if n is None else {"n": n}
        return Row(method, self.seed, {**values, **self.times(seconds)}, condition)

    def times(self, seconds: float) -> dict[str, float]:
        """Seconds, and their share of the training."""
        return {"seconds": seconds, "share": seconds / self.trained.seconds}

    def given(self) -> Iterator[Row]:
        """The plain network, stochastic BN, and a temperature as the cheap rival."""
        model = self.trained.model
        yield self.row(_PLAIN, self.trained.guide, 0.0)
        with stopwatch() as spent:
            bank = self.trained.bank(self.settings.bank_rows)
            guide = guides.StochasticBatchNorm(model, bank)
        yield self.row("stochastic BN", guide, spent())
        with stopwatch() as spent:
            validation = predict(model, self.trained.guide, self.validation.x, 1)
            temperature = fit_temperature(validation, self.validation.y)
        inside, outside = (
            predict(model, self.trained.guide, x, 1).tempered(temperature)
            for x in (self.data.test.x, self.outliers)
        )
        values = metrics(inside, self.data.test.y, outside)
        values |= {**self.times(spent()), "chosen": temperature}
        yield Row("temperature", self.seed, values)

    def of_sizes(self) -> Iterator[Row]:
        """Batch noise of every size, and of the size with the best validation NLL."""
        model, settings = self.trained.model, self.settings

        def law(n: int) -> tuple[guides.Guide, float]:
            return guides.BatchNoise(model, n), float(n)

        def rows_of_bank(n: int) -> tuple[guides.Guide, float]:
            torch.manual_seed(self.seed)
            bank = collect_bank(model, self.data.train.x, settings.bank_rows, n)
            values = bank.effective_batch_size().estimate
            return guides.MonteCarloBatchNorm(model, bank), _geometric_mean(values.tolist())

        for method, make, sizes in (
            ("fixed law", law, settings.sizes),
            ("MCBN", rows_of_bank, settings.bank_sizes),
        ):
            found: dict[int, tuple[float, Row]] = {}
            with stopwatch() as spent:
                made = {n: make(n) for n in sizes if n <= len(self.data.train.y)}
                nll = {n: self._validation_nll(guide) for n, (guide, _) in made.items()}
            for n, (guide, n_eff) in made.items():
                row = self.row(method, guide, spent() / len(made), n)
                row = replace(row, values={**row.values, "values": n_eff})
                found[n] = nll[n], row
                yield row
            best = min(found, key=lambda n: found[n][0])
            chosen = {**found[best][1].values, **self.times(spent()), "chosen": best}
            yield Row(f"{method}, n chosen", self.seed, chosen)
            if make is law:
                yield self._refreshed(best, spent())

    def _refreshed(self, n: int, seconds: float) -> Row:
        """The law of the chosen ``n``, with the statistics that each draw has in force."""
        model, settings = self.trained.model, self.settings
        with stopwatch() as spent:
            draws = refresh_draws(
                model,
                guides.BatchNoise(model, n),
                self.data.train.x,
                settings.num_samples,
                num_batches=_REFRESHED,
                seed=self.seed,
            )
        row = self.row("fixed law, statistics per draw", draws, seconds + spent())
        return replace(row, values={**row.values, "chosen": n})

    def _validation_nll(self, guide: guides.Guide) -> float:
        torch.manual_seed(self.seed)
        validation = tuple(self.validation)
        return predictive_nll(self.trained.model, guide, validation, self.settings.num_samples)

    def fitted(self) -> Iterator[Row]:
        """Variational posteriors, fitted to the training images with the network frozen."""
        settings, model = self.settings, self.trained.model
        for name, make in _FITTED.items():
            torch.manual_seed(self.seed)
            guide = make(model)
            history = fit(
                model,
                guide,
                tuple(self.data.train),
                epochs=settings.posterior_epochs,
                batch_size=settings.training.batch_size,
                lr=settings.posterior_lr,
                train_network=False,
                fabric=make_fabric(self.device),
                seed=self.seed,
                progress=False,
            )
            row = self.row(name, guide, history.seconds)
            learned = getattr(guide, "batch_size", None)
            if isinstance(learned, Tensor):
                n = float(learned.detach().log().mean().exp())
                row = Row(name, self.seed, {**row.values, "chosen": n})
            yield row


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _draw_sizes(rows: Sequence[Row], plain: Sequence[Row], figure: Figure) -> None:
    data = frame(rows)
    for axes, column in zip(
        figure.subplots(1, 2, sharey=True), columns("nll", "calibrated_nll"), strict=True
    ):
        for method, group in data.groupby("method", sort=False):
            by_size = group.groupby("n")
            axes.errorbar(
                by_size["values"].mean(),
                by_size[column.name].mean(),
                by_size[column.name].std() if group["seed"].nunique() > 1 else None,
                marker="o",
                capsize=3,
                label=method,
            )
        if plain:
            level = sum(row.values[column.name] for row in plain) / len(plain)
            axes.axhline(level, color="0.5", linestyle="--", label=_PLAIN)
        axes.set_xscale("log")
        axes.set(xlabel="n (values)", ylabel=f"test {column.heading}")
    axes.legend(fontsize="small")
