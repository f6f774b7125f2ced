"""Normalizers × posteriors on a data set of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pyronorm import plots
from pyronorm.checks import check_fields
from pyronorm.datasets import ImageData
from pyronorm.diagnostics import to_arviz
from pyronorm.study.answer import answer
from pyronorm.study.architectures import make_network
from pyronorm.study.columns import COLUMNS, columns
from pyronorm.study.draws_curve import draws_section, metrics_by_draws
from pyronorm.study.images import load_images, share_ratio
from pyronorm.study.methods import METHODS, Method, choose_methods
from pyronorm.study.settings import Settings, Training
from pyronorm.study.study import Job, Outcome, Place, Plot, Results, Section, Study
from pyronorm.study.table import Row, Table
from pyronorm.study.training import Trained, choose_rate, judge, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison"]

_BASELINE = "batch/point"
_MARGIN = 0.01  # nats: less does not matter
_RELIABILITY = ("batch/point", "batch/mcbn", "weight/point", "weight/mean-field")


@dataclass(frozen=True)
class Comparison(Study):
    """Train and judge methods on a data set, over several seeds.

    Methods of one seed share split, initial weights, order of batches and budget; methods that
    predict from a statistics bank share the network it was collected from, and with it the job.

    Attributes:
        name: the study's name.
        settings: what the methods share.
        question: what is asked, for the report.
    """

    title: ClassVar[str] = "Comparison of normalizers and posteriors"

    name: str
    settings: Settings
    question: str = (
        "Which distributions over normalization statistics predict best, with which normalizer?"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def methods(self) -> list[Method]:
        """The rows."""
        return choose_methods(self.settings.methods)

    def jobs(self) -> Sequence[Job]:
        """One for each training and seed."""
        names = dict.fromkeys(method.training for method in self.methods)
        return [Job(name, seed) for seed in self.settings.seeds for name in names]

    def run(self, job: Job, place: Place) -> Outcome:
        """Train once, and judge every method that predicts from this training."""
        settings = self.settings
        data = load_images(settings.data, job.seed, place, settings.num_train, settings.num_test)
        base = METHODS[job.name]

        def make(images: ImageData, training: Training) -> Trained:
            torch.manual_seed(job.seed)
            return train(
                make_network(settings.network, images),
                base.normalizer,
                base.guide,
                images,
                training,
                noise=settings.noise_batch_size,
                seed=job.seed,
                device=place.device,
            )

        training, choice = choose_rate(
            make,
            data,
            settings.training,
            settings.learning_rates,
            settings.num_validation,
            settings.num_samples,
            job.seed,
        )
        trained = make(data, training)
        rows, arrays, idatas = [], {"y": data.test.y.numpy()}, {}
        for method in self.methods:
            if method.training != job.name:
                continue
            guide, seconds = trained.posterior(method, settings.bank_rows)
            values, prediction = judge(
                trained.model,
                guide,
                data.test,
                settings.num_samples,
                seed=job.seed,
                repeats=settings.timed_predictions,
            )
            if settings.learning_rates:
                values |= {"rate": training.lr, "choice_seconds": choice}
            rows.append(Row(method.name, job.seed, {**values, "train_seconds": seconds}))
            if settings.draws_curve and method.from_bank is not None:
                by_draws = metrics_by_draws(
                    trained.model, guide, data.test, settings.draws_curve, job.seed
                )
                rows += [Row(method.name, job.seed, v, {"draws": T}) for T, v in by_draws.items()]
            if job.seed == settings.seeds[0]:
                arrays[method.name] = prediction.mean.cpu().numpy()
                idatas[method.name] = to_arviz(
                    trained.model,
                    guide,
                    tuple(data.test),
                    settings.arviz_samples,
                    seed=job.seed,
                )
        return Outcome(rows, arrays, idatas, data.note)

    def sections(self, results: Results) -> Sequence[Section]:
        """One table, three plots; what more draws do."""
        settings, training = self.settings, self.settings.training
        by_draws = [row for row in results.rows if row.condition]
        table = Table(
            f"{settings.data}, {training.epochs} epochs",
            self._against_baseline(results),
            columns("accuracy", "nll", "calibrated_nll", "difference", "ece", "calibrated_ece"),
            baseline=_BASELINE,
            resampled=share_ratio(settings.data),
            details=columns(
                *("nll_center", "brier", "relative_train_time", "predict_ms"),
                *("rate", "choice_seconds"),
            ),
            words={method.name: method.description for method in self.methods},
        )
        size = "all" if settings.num_train is None else f"{settings.num_train:,}"
        rate = f"{training.lr}"
        if rates := settings.learning_rates:
            rate = (
                f"the rate among {', '.join(map(str, rates))} that gave each training the least "
                f"calibrated NLL on {settings.num_validation} held-out training images,"
            )
        text = (
            f"{self.question}\n\n"
            f"Every method has the same splits, initial weights, order of batches and budget: network "
            f"`{settings.network}`, {size} training images, {training.epochs} epochs, batch size "
            f"{training.batch_size}, AdamW from {rate} annealed to 0, weight decay "
            f"{training.weight_decay}, prior and fixed noise of n = {settings.noise_batch_size:g}, "
            f"{settings.num_samples} draws per prediction. Monte-Carlo and stochastic batch "
            f"normalization and the joint Gaussian (of rank 10) add the statistics of "
            f"{settings.bank_rows} training batches to the plain network; fixed noise is that of the "
            "law of batch normalization."
        )
        return [
            Section(
                "Results",
                text,
                [table],
                self._plots(results),
                answer(table, COLUMNS["calibrated_nll"], _MARGIN),
            ),
            *([draws_section(by_draws)] if by_draws else []),
        ]

    def _against_baseline(self, results: Results) -> list[Row]:
        base = {r.seed: r.values for r in _single(results) if r.method == _BASELINE}
        order = {method.name: i for i, method in enumerate(self.methods)}
        rows = []
        for row in sorted(_single(results), key=lambda row: order[row.method]):
            values = dict(row.values)
            if row.seed in base:
                mine = base[row.seed]
                values["relative_train_time"] = values["train_seconds"] / mine["train_seconds"]
                if row.method != _BASELINE and "calibrated_nll" in values:
                    values["difference"] = values["calibrated_nll"] - mine["calibrated_nll"]
            rows.append(Row(row.method, row.seed, values))
        return rows

    def _plots(self, results: Results) -> list[Plot]:
        nll: dict[str, list[float]] = {
            method.name: [r.values["nll"] for r in _single(results) if r.method == method.name]
            for method in self.methods
        }
        nll = {name: values for name, values in nll.items() if values}
        if not nll:
            return []
        # Earlier runs may have had another first seed, and have left theirs.
        first = self.settings.seeds[0]
        predictions = {
            name: (torch.from_numpy(p), torch.from_numpy(arrays["y"]))
            for job, arrays in results.arrays.items()
            for name, p in arrays.items()
            if name != "y" and job.seed == first
        }
        some = {n: predictions[n] for n in _RELIABILITY if n in predictions} or predictions
        files = {
            name: file
            for job, found in results.arviz.items()
            for name, file in found.items()
            if not name.endswith("/point") and job.seed == first
        }
        caption = (
            "Test NLL as predicted: a dot for each seed, joined by a line where all methods have the "
            f"same seeds; bars are means; dashed the mean of {_BASELINE}."
        )
        made = [Plot("nll", caption, partial(_draw_nll, nll), (8.0, 5.0))]
        if some:
            caption = (
                f"Reliability, seed {first}: accuracy minus confidence in bins of equal numbers of test "
                "images; bars are one binomial standard error of the accuracy. Dashed: calibrated; "
                "below it, too confident."
            )
            made.append(Plot("reliability", caption, partial(_draw_reliability, some), (8.0, 4.5)))
        if files:
            caption = (
                f"Posterior standard deviation of the log scale by layer, seed {first}: median over "
                "channels, bars from the 10 % to the 90 % quantile of the channels."
            )
            made.append(Plot("posterior-scale", caption, partial(_draw_scale, files)))
        return made


def _single(results: Results) -> list[Row]:
    """Rows that are not of a certain number of draws."""
    return [row for row in results.rows if not row.condition]


def _draw_nll(nll: dict[str, list[float]], figure: Figure) -> None:
    baseline = _BASELINE if _BASELINE in nll else None
    plots.plot_metric(nll, "test NLL (nats)", baseline=baseline, ax=figure.subplots())


def _draw_reliability(predictions: dict[str, Any], figure: Figure) -> None:
    plots.plot_reliability(predictions, ax=figure.subplots())


def _draw_scale(files: dict[str, Any], figure: Figure) -> None:
    import arviz as az

    idatas = {name: az.from_netcdf(str(file)) for name, file in files.items()}  # type: ignore[no-untyped-call]
    plots.plot_posterior_scale(idatas, ax=figure.subplots())
