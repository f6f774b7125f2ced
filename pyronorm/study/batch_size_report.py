"""The report on batch sizes: what noise they make, what it does, what takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pyronorm.study.answer import answer
from pyronorm.study.columns import COLUMNS, columns
from pyronorm.study.study import Plot, Results, Section
from pyronorm.study.table import Better, Column, Row, Table, frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyronorm.study.batch_size import BatchSizeSettings

__all__ = ["BN", "GROUP", "GROUPS", "MCBN", "NOISE", "PLAIN", "SIZE", "WHITENING", "report"]

SIZE, GROUPS = "batch size", "groups"
BN, MCBN = "batch, evaluation mode", "batch, MCBN"
NOISE, PLAIN = "weight, matched noise", "weight, no noise"
GROUP, WHITENING = "group", "group whitening"

_MARGIN = 0.01  # nats: less does not matter
_SHORT = columns(
    *("accuracy", "nll", "calibrated_nll", "ece", "calibrated_ece", "brier", "calibrated_brier"),
    *("aurc", "realized_noise"),
)
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


def report(settings: BatchSizeSettings, results: Results) -> Sequence[Section]:
    """By batch size, and by number of groups."""
    training = settings.training
    size = "all" if settings.num_train is None else f"{settings.num_train:,}"
    text = (
        "How much noise do batches of a size inject, when does it help or hurt, and can explicit "
        "noise or groups of channels take its place?\n\n"
        f"Data `{settings.data}`, {size} training images, network `{settings.network}`, "
        f"{training.epochs} epochs of AdamW, annealed to 0 from {training.lr} at batch size "
        f"{training.batch_size}, times the root of the ratio at others. *Weight, matched noise* is "
        "weight normalization trained with the same batches and explicit noise: in each layer, "
        "shifts and scales as those of independent Gaussian batches of so many values as were "
        "measured there with batch normalization, by means and by variances. "
        f"{settings.num_samples} draws are averaged."
    )
    by_size = [row for row in results.rows if SIZE in row.condition]
    by_groups = [row for row in results.rows if GROUPS in row.condition]
    batch = [row for row in by_size if row.method == BN]
    return [
        Section(
            "Batch size",
            text,
            [
                Table("Noise of batches, by batch size", batch, _MAGNITUDE, by=(SIZE,)),
                Table(
                    "Predictions, by batch size",
                    by_size,
                    _SHORT,
                    by=(SIZE, "method"),
                    within=(SIZE,),
                ),
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
                    "Test NLL by batch size, as it is and at its own temperature.",
                    partial(_draw_sizes, by_size),
                    (9.0, 4.0),
                ),
            ]
            if by_size
            else [],
            _answers(by_size),
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
                    by=("method", GROUPS),
                )
            ],
            [Plot("groups", "Test NLL by groups.", partial(_draw_groups, by_groups))]
            if by_groups
            else [],
        ),
    ]


def _answers(rows: Sequence[Row]) -> str:
    """What differs from batch normalization at each batch size, and what noise does by itself."""
    found = []
    for n in dict.fromkeys(row.condition[SIZE] for row in rows):
        here = [row for row in rows if row.condition[SIZE] == n]
        noise = [row for row in here if row.method in (PLAIN, NOISE)]
        for table in (
            Table("", here, _SHORT, baseline=BN),
            Table("", noise, _SHORT, baseline=PLAIN),
        ):
            text = answer(table, COLUMNS["calibrated_nll"], _MARGIN)
            found += [f"- Batches of {n}. {text}"] if text else []
    return "\n".join(found)


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
        _curves(left, [replace(row, method=label) for row in rows], SIZE, value)
    left.set_yscale("log")
    left.set_ylabel("effective batch size")
    left.legend(fontsize="small")
    _curves(right, rows, SIZE, "disturbance")
    right.set_yscale("log")
    right.set_ylabel("disturbance (standard deviations)")


def _draw_sizes(rows: Sequence[Row], figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    batch_mode = [replace(row, method="batch, batch mode") for row in rows if row.method == BN]
    _curves(left, rows, SIZE, "nll")
    _curves(left, batch_mode, SIZE, "batch_nll")
    _curves(right, rows, SIZE, "calibrated_nll")
    left.set_ylabel("test NLL (nats)")
    right.set_ylabel("calibrated test NLL (nats)")
    left.legend(fontsize="small")


def _draw_groups(rows: Sequence[Row], figure: Figure) -> None:
    axes = figure.subplots()
    _curves(axes, rows, GROUPS, "nll")
    axes.set_ylabel("test NLL (nats)")
    axes.legend(fontsize="small")
