"""The report of `pyronorm compare`: one sentence, a table and a picture for two tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pyronorm.study.answer import Verdict, headline, judge_methods
from pyronorm.study.columns import COLUMNS, columns
from pyronorm.study.study import Plot, Results, Section
from pyronorm.study.table import Column, Row, Table, paired_reach
from pyronorm.study.training_noise_report import choose_main

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyronorm.study.comparison import Comparison
    from pyronorm.study.training_noise import TrainingNoise

__all__ = ["sections"]

_NLL = "calibrated_nll"
_CALIBRATED = replace(
    COLUMNS[_NLL],
    definition="NLL at a temperature of the method's own, which no judged example has helped to choose: "
    "with few images the best one for the validation images, with many each tenth of the test data at "
    "the best one for the rest.",
)
_SHOWN: tuple[Column, ...] = (
    *columns("accuracy", "nll"),
    _CALIBRATED,
    *columns("difference", "ece", "calibrated_ece"),
)


def sections(
    few_study: TrainingNoise, few: Results, many_study: Comparison, many: Results
) -> Sequence[Section]:
    """One sentence, a table and a picture for both tasks; each task at length."""
    few_parts = few_study.sections(few) if few.rows else []
    many_parts = many_study.sections(many) if many.rows else []
    tables: dict[str, Table] = {}
    settings = few_study.settings
    size = f"{settings.num_train:,}" if settings.num_train is not None else "all"
    few_task = f"with {size} training images"
    if few.rows:
        main = few_parts[0].tables[0]
        rows = _against(choose_main(main.rows), str(main.baseline))
        title = f"Few images: {size} of {settings.data}, {settings.network}"
        tables[few_task] = replace(main, title=title, rows=rows, columns=_SHOWN, details=())
    other = many_study.settings
    size = f"{other.num_train:,}" if other.num_train is not None else "all"
    many_task = f"with {size} training images"
    if many.rows:
        main = many_parts[0].tables[0]
        title = f"Many images: {size} of {other.data}, {other.network}"
        tables[many_task] = replace(main, title=title, columns=_SHOWN)
    verdicts = {
        task: judge_methods(tables[task], _CALIBRATED) if task in tables else None
        for task in (few_task, many_task)
    }
    text = (
        "Does noise in the statistics of batch normalization help, and when? One task has few images, "
        "and a network that is large for them: there a method could help against overfitting. The other "
        "has all of the images, and a small network. Every method is compared with plain batch "
        "normalization of the same seed, each at a temperature of its own, since a temperature alone "
        "mends much of what a network is too sure of; columns without *calibrated* are as predicted."
    )
    shown = {task: verdict for task, verdict in verdicts.items() if verdict is not None}
    plot = Plot(
        "differences",
        "Calibrated NLL minus that of plain batch normalization of the same seed (dashed); left is "
        "better. Dots: seeds, each joined by a thin line. Diamonds and bars: mean and 95 % interval; "
        "green and red: better and worse by the tests.",
        partial(_draw, shown),
        (8.0, 2.0 + 0.42 * sum(len(verdict.gains) for verdict in shown.values())),
    )
    return [
        Section(
            "What came out", text, list(tables.values()), [plot] * bool(shown), headline(verdicts)
        ),
        # The equivalents of two networks say nothing, and the tables of the second task are above.
        *(_folded("Few images", replace(part, answer="")) for part in few_parts),
        *(
            _folded("Many images", replace(part, answer="", tables=part.tables if position else ()))
            for position, part in enumerate(many_parts)
        ),
    ]


def _folded(task: str, part: Section) -> Section:
    return replace(part, title=f"{task}: {part.title.lower()}", folded=True)


def _against(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Rows with their differences from the baseline of the same seed."""
    base = {row.seed: row.values[_NLL] for row in rows if row.method == baseline}
    return [
        replace(row, values={**row.values, "difference": row.values[_NLL] - base[row.seed]})
        if row.method != baseline and row.seed in base
        else row
        for row in rows
    ]


def _draw(verdicts: Mapping[str, Verdict], figure: Figure) -> None:
    heights = [len(verdict.gains) + 1 for verdict in verdicts.values()]
    every = figure.subplots(len(verdicts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (task, verdict) in zip(every, verdicts.items(), strict=True):
        _draw_differences(task, verdict, axes)


def _draw_differences(task: str, verdict: Verdict, axes: Axes) -> None:
    from textwrap import fill

    names = list(verdict.gains)
    seeds = sorted({seed for gain in verdict.gains.values() for seed in gain.index})
    for seed in seeds:
        points = [
            (verdict.gains[n][seed], i) for i, n in enumerate(names) if seed in verdict.gains[n]
        ]
        axes.plot(*zip(*points, strict=True), "o-", color="0.65", lw=0.7, markersize=3, zorder=1)
    for position, name in enumerate(names):
        reach = paired_reach(verdict.gains[name], verdict.table.resampled)
        color = "C3" if name in verdict.worse else "C2" if name in verdict.better else "C0"
        axes.errorbar(
            verdict.mean(name), position, xerr=reach, fmt="D", color=color, capsize=4, zorder=3
        )
    axes.axvline(0.0, color="0.3", linestyle="--", lw=1)
    axes.set_yticks(range(len(names)), [fill(verdict.named(n).strip("`"), 36) for n in names])
    axes.tick_params(axis="y", labelsize="small")
    axes.invert_yaxis()
    axes.set_title(task, fontsize="medium")
    axes.set(xlabel="calibrated NLL minus plain (nats)")
    axes.grid(axis="x", alpha=0.3)
