"""The report on uncertainty and outliers: one table, equivalents, and what is left under shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pyronorm import plots
from pyronorm.diagnostics import selective_risk
from pyronorm.study.answer import answer
from pyronorm.study.columns import COLUMNS, columns
from pyronorm.study.equivalents import curve_table, equivalents_text
from pyronorm.study.study import Plot, Results, Section
from pyronorm.study.table import Better, Column, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyronorm.study.uncertainty_mnist import UncertaintyMNISTSettings

__all__ = ["BASELINE", "ENSEMBLE", "SEVERITY", "SHOWN", "report"]

BASELINE = "batch/point"
SEVERITY = "severity"
_MARGIN = 0.005  # nats: less does not matter
_ERROR = Column("error", "error, %", 2, Better.LOWER, "Share of test images misclassified.")
_SHIFT_COLUMNS = (
    *columns("nll", "ece", "brier", "aurc"),
    Column(
        "shifted_nll",
        "NLL, T",
        3,
        Better.LOWER,
        "NLL at the temperature fitted on the test images as they are.",
    ),
    Column("shifted_ece", "ECE, T", 3, Better.LOWER, "ECE at that temperature."),
)
ENSEMBLE = "ensemble"
SHOWN = (BASELINE, "batch/stochastic", ENSEMBLE, "dropout/mc", "weight/mean-field")


def report(settings: UncertaintyMNISTSettings, results: Results) -> Sequence[Section]:
    """One table; rejection and outliers of some methods."""
    training = settings.training
    size = "all" if settings.num_train is None else f"{settings.num_train:,}"
    text = (
        "How well do predictions know when they are wrong, and when an image is of another kind?"
        f"\n\nData `{settings.data}`, {size} training images, network `{settings.network}`, "
        f"{training.epochs} epochs with batch size {training.batch_size}, AdamW from {training.lr} "
        f"annealed to 0. Ensembles have {settings.members} networks; dropout has rate "
        f"{settings.dropout}. {settings.num_samples} draws per prediction, shared out to the "
        f"members of an ensemble. Outliers: `{settings.outliers}`, by the entropy of the prediction."
    )
    table = Table(
        f"{settings.data} against {settings.outliers}",
        [row for row in results.rows if not row.condition],
        (
            _ERROR,
            *columns(
                "nll",
                "calibrated_nll",
                "ece",
                "calibrated_ece",
                "brier",
                "calibrated_brier",
                "aurc",
                "auroc",
                "fpr95",
                "auroc_information",
                "fpr95_information",
                "train_seconds",
            ),
        ),
        baseline=BASELINE,
    )
    shown = {
        name: arrays
        for job, arrays in results.arrays.items()
        for name in SHOWN
        if job.seed == settings.seeds[0] and f"{name} mean" in arrays
    }
    figures = [
        Plot(
            "rejection",
            "Error of the test images that are kept when the least confident are rejected, first "
            "seed; AURC is the area below.",
            partial(_draw_rejection, shown),
        ),
        Plot(
            "outliers",
            f"Entropy of predictions for {settings.data} and {settings.outliers}, first seed.",
            partial(_draw_outliers, shown, (settings.data, settings.outliers)),
            (9.0, 2.2 * max(1, len(shown))),
        ),
    ]
    found = answer(table, COLUMNS["calibrated_nll"], _MARGIN)
    sections = [Section("Results", text, [table], figures if shown else [], found)]
    if worth := equivalents_text(results.rows):
        curve = curve_table(results.rows)
        sections.append(Section("In units of plain networks", worth, [curve]))
    if by_severity := [row for row in results.rows if SEVERITY in row.condition]:
        sections.append(_shift_section(settings, by_severity))
    return sections


def _shift_section(settings: UncertaintyMNISTSettings, rows: Sequence[Row]) -> Section:
    """What is left of accuracy and calibration on corrupted images."""
    text = (
        f"{settings.shift_images:,} test images, corrupted in {len(settings.corruptions)} ways "
        f"({', '.join(settings.corruptions)}); means over these. Temperatures are those of the test "
        "images as they are: nothing is fitted under shift."
    )
    table = Table(
        "By severity",
        sorted(rows, key=lambda row: row.condition[SEVERITY]),
        (_ERROR, *_SHIFT_COLUMNS),
        by=(SEVERITY, "method"),
        within=(SEVERITY,),
        baseline=BASELINE,
    )
    return Section("Under shift", text, [table])


def _draw_rejection(shown: Mapping[str, Mapping[str, Any]], figure: Figure) -> None:
    curves = {}
    for name, arrays in shown.items():
        p, y = torch.from_numpy(arrays[f"{name} mean"]), torch.from_numpy(arrays["y"])
        confidence, classes = p.max(-1)
        curves[name] = selective_risk(-confidence, (classes != y).float())
    plots.plot_rejection(curves, ax=figure.subplots())


def _draw_outliers(
    shown: Mapping[str, Mapping[str, Any]], labels: tuple[str, str], figure: Figure
) -> None:
    for axes, (name, arrays) in zip(
        figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0], shown.items(), strict=True
    ):
        inside, outside = (
            torch.from_numpy(arrays[f"{name} {part}"]) for part in ("inside", "outside")
        )
        plots.plot_outliers(dict(zip(labels, (inside, outside), strict=True)), "", ax=axes)
        axes.set_title(name, fontsize="medium")
        axes.set_ylabel("share")
    axes.set_xlabel("entropy (nats)")
