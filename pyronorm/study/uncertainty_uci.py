"""Uncertainty of regressions on UCI tables: the protocol of the MCBN paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pyronorm.datasets import load_uci
from pyronorm.study.study import Job, Outcome, Place, Plot, Results, Section, Study
from pyronorm.study.table import Better, Column, Row, Table, frame
from pyronorm.study.uci_networks import (
    BASELINE,
    DATA,
    KINDS,
    POINTS,
    UciNetworks,
    UncertaintyUciSettings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["UncertaintyUci"]

_CONSTANT = "constant variance"

_PERCENT = (
    Column(
        "pll_percent",
        "PLL, %",
        1,
        Better.HIGHER,
        "Predictive log likelihood of the test targets on a scale of its own for each network: 0 is the "
        "same predictive mean with a constant variance, 100 the same mean with the variance that is "
        "best for each test example.",
    ),
    Column("crps_percent", "CRPS, %", 1, Better.HIGHER, "The same for the CRPS."),
    Column(
        "pll_percent_likelihood",
        "PLL, %, noise by likelihood",
        1,
        Better.HIGHER,
        "PLL, % with the noise, and the constant variance, fitted to the validation data by likelihood "
        "instead of CRPS.",
    ),
)
_RAW = (
    Column("rmse", "RMSE", 3, Better.LOWER, "Root mean squared error, in units of the target."),
    Column(
        "pll",
        "PLL",
        3,
        Better.HIGHER,
        "Mean log predictive density of the test targets (the negative of the NLL), in nats.",
    ),
    Column(
        "crps",
        "CRPS",
        3,
        Better.LOWER,
        "Continuous ranked probability score of the normal distribution with the predictive mean and "
        "variance, in units of the target.",
    ),
)
_CHOOSING = ("MCBN", "MC dropout", "weight, fixed noise", "weight, learned n")
_CHOSEN = Column(
    "chosen",
    "n or rate",
    2,
    Better.NEITHER,
    "The batch size or dropout rate chosen on validation data; n learned (geometric mean over layers).",
)
_INTERVALS = (
    Column(
        "coverage",
        "coverage",
        3,
        Better.NEITHER,
        "Share of test targets in their 90 % interval; 0.9 is right.",
    ),
    Column(
        "width", "width", 3, Better.NEITHER, "Mean length of the intervals, in units of the target."
    ),
)

# MCBN and MC dropout: PLL %, CRPS %, as published.
_PUBLISHED: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "bostonHousing": ((10.49, 8.50), (5.51, 3.06)),
    "concrete": ((-36.36, 3.91), (10.92, 0.93)),
    "energy": ((10.89, 5.75), (-14.28, 1.37)),
    "kin8nm": ((1.68, 2.85), (-0.26, 1.82)),
    "power-plant": ((0.33, 0.24), (3.52, -0.44)),
    "protein-tertiary-structure": ((2.56, 2.66), (6.23, 0.99)),
    "wine-quality-red": ((0.19, 0.26), (2.91, 2.00)),
    "yacht": ((45.58, -56.39), (-41.54, 21.42)),
}


@dataclass(frozen=True)
class UncertaintyUci(Study):
    """How much the uncertainty of a network is worth, its predictive mean given.

    A job per table, kind of network and split trains the networks of that kind, chooses among them on
    validation data, and judges all posteriors of the chosen one.
    """

    title: ClassVar[str] = "Uncertainty of regressions on UCI tables"

    name: str
    settings: UncertaintyUciSettings

    def jobs(self) -> Sequence[Job]:
        """One per table, kind of network and split."""
        settings = self.settings
        return [
            Job(f"{table} {kind}", seed)
            for seed in settings.seeds
            for table in settings.tables
            for kind in KINDS
        ]

    def run(self, job: Job, place: Place) -> Outcome:
        """Train what the job's name says."""
        settings = self.settings
        name, kind = job.name.split(" ", 1)
        data = load_uci(name, place.data_root).split(job.seed, settings.test_share)
        num_validation = max(1, round(settings.validation_share * len(data.train.y)))
        data, validation = data.split_off(num_validation, job.seed)
        split = UciNetworks(settings, data, validation, job.seed, place.device)
        return Outcome(list(KINDS[kind](split)))

    def sections(self, results: Results) -> Sequence[Section]:
        """Uncertainty on the paper's scale, plain scores, intervals."""
        order = self.settings.tables.index
        rows = sorted(results.rows, key=lambda row: order(str(row.condition[DATA])))
        drawn = [row for row in rows if "pll" in row.values and row.method not in POINTS]
        scored = [row for row in rows if "pll" in row.values]
        zeros = {
            (row.condition[DATA], row.seed): Row(
                _CONSTANT, row.seed, dict.fromkeys((c.name for c in _PERCENT), 0.0), row.condition
            )
            for row in drawn
        }
        settings = self.settings
        ratio = settings.test_share / ((1 - settings.test_share) * (1 - settings.validation_share))
        chosen = [row for row in drawn if row.method in _CHOOSING and "chosen" in row.values]
        return [
            Section(
                "Worth of the uncertainty",
                self._text(),
                [
                    _table(
                        "Uncertainty, from constant variance (0) to the best variances (100)",
                        sorted(
                            [*zeros.values(), *drawn],
                            key=lambda row: order(str(row.condition[DATA])),
                        ),
                        _PERCENT,
                        _CONSTANT,
                        ratio,
                    ),
                ],
                [
                    Plot(
                        "percent",
                        "Uncertainty on the scale from constant variance (0) to the variances that are "
                        "best for each example (100), mean and standard deviation over splits; linear "
                        "between -10 and 10, logarithmic beyond. Crosses: published for MCBN.",
                        partial(_draw_percent, drawn),
                        (9.0, 1.6 + 1.3 * len(self.settings.tables)),
                    )
                ]
                if drawn
                else [],
            ),
            Section(
                "Predictions",
                "The scores themselves. *BN*, *plain*, *dropout off* and *weight, no noise* predict "
                "with one network and a constant variance.",
                [
                    _table("Scores", scored, _RAW, BASELINE, ratio),
                    _table("Chosen on validation data, or learned", chosen, [_CHOSEN]),
                ],
            ),
            Section(
                "Intervals",
                "Central 90 % intervals of the normal distribution with the predictive mean and "
                "variance; for the *jackknife* those of the jackknife+ with linearized leave-one-out "
                f"predictions (Alaa & van der Schaar, 2020; damping {self.settings.damping:g}) of the "
                "same network as *plain*, without any use of validation data. The damping is put in "
                "afterwards, and is not the penalty of the training: another one covers otherwise.",
                [_table("90 % intervals", rows, _INTERVALS)],
            ),
        ]

    def _text(self) -> str:
        settings = self.settings
        return (
            "Is the uncertainty of these networks worth more than one variance for all examples?\n\n"
            "The protocol of Teye, Azizpour & Smith, *Bayesian Uncertainty Estimation for Batch "
            "Normalized Deep Networks* (ICML 2018): two hidden layers of 50 ReLU units (100 on the "
            "protein table), features and target standardized, random splits "
            f"({len(settings.seeds)} here) with {settings.test_share:.0%} of the rows to test on. "
            "Gaussian noise is added to the draws, its size fitted by CRPS to "
            f"{settings.validation_share:.0%} of the other rows (standard deviation between 0.1 and 3 "
            "times the RMSE there). At 0 %, the baseline of each method, *the method's own predictive "
            "mean* has one variance for all examples, fitted in the same way (CUBN and CUDO in the "
            "paper; so its programs compute them). At 100 % that mean has for each example the variance "
            "with the best score: the squared error for the PLL, 1.44 times it for the CRPS. So the "
            "percentages say nothing about the mean; for that see the second section.\n\n"
            f"Other than in the paper: {settings.steps:,} steps of Adam (from {settings.lr:g}, annealed "
            f"to 0; L2 penalty {settings.weight_decay:g}, not searched for) instead of early stopping, "
            "the noise learned along with the network, one validation part instead of 5 folds and no "
            "second training with it, one network per split instead of 5, no dropout of inputs, "
            f"{settings.num_samples} draws instead of 500.\n\n"
            f"Options are chosen by validation RMSE, as in the paper: the batch size for *MCBN* "
            f"{_among(settings.batch_sizes)}, the rate for *MC dropout* {_among(settings.dropouts)}; "
            "other posteriors of these networks inherit the choice. So is n of *weight, fixed noise*, "
            "among the batch sizes. *MCBN*, *stochastic BN* and *BN, fixed law* (independent noise of "
            "the batch-norm law with n the batch size) are posteriors of the network *BN*. The *weight* "
            f"rows have weight normalization, batch size {settings.batch_size} and explicit noise, "
            "learned against the prior "
            f"`BatchNoise({settings.prior:g})`. *constant variance* is 0 by definition; differences "
            "from it are tested, with allowance for the examples that splits share.\n\n"
            "Published, PLL % and CRPS % of MCBN; of MC dropout (the paper as submitted in 2017):\n\n"
            + "\n".join(
                f"- {table}: {mcbn[0]:g} and {mcbn[1]:g}; {dropout[0]:g} and {dropout[1]:g}"
                for table, (mcbn, dropout) in _PUBLISHED.items()
                if table in settings.tables
            )
        )


def _among(values: Sequence[float]) -> str:
    """The choices in words."""
    words = [f"{value:g}" for value in values]
    return f"({words[0]} only)" if len(words) == 1 else f"among {', '.join(words)}"


def _table(
    title: str,
    rows: Sequence[Row],
    shown: Sequence[Column],
    baseline: str | None = None,
    resampled: float = 0.0,
) -> Table:
    return Table(title, rows, shown, (DATA, "method"), (DATA,), baseline, resampled)


def _draw_percent(rows: Sequence[Row], figure: Figure) -> None:
    data = frame(rows)
    tables = list(dict.fromkeys(data[DATA]))
    methods = list(dict.fromkeys(data["method"]))
    panels = figure.subplots(1, 2, sharey=True)
    for k, (axes, column) in enumerate(zip(panels, _PERCENT[:2], strict=True)):
        for position, method in enumerate(methods):
            by_table = data[data["method"] == method].groupby(DATA)[column.name]
            at = [tables.index(name) for name in by_table.mean().index]
            axes.errorbar(
                by_table.mean(),
                np.array(at) + 0.7 * ((position + 0.5) / len(methods) - 0.5),
                xerr=by_table.std() if data["seed"].nunique() > 1 else None,
                fmt="o",
                markerfacecolor="none",
                capsize=2,
                label=method,
            )
        published = [_PUBLISHED[table][0][k] for table in tables]
        above = np.arange(len(tables)) - 0.42
        axes.plot(published, above, "x", color="0.4", label="MCBN, published")
        axes.axvline(0, color="0.5", linestyle="--")
        axes.set_xscale("symlog", linthresh=10)
        left, right = axes.get_xlim()
        ticks = [t for t in (-300, -100, -30, -10, 0, 10, 30, 100) if left <= t <= right]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_yticks(range(len(tables)), tables)
        axes.set_xlabel(column.heading)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize="small")
