"""The report on noise in training: choices on validation images, intervals, equivalents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch

from pyronorm.diagnostics import ensemble_equivalent
from pyronorm.study.answer import headline, judge_methods
from pyronorm.study.columns import columns
from pyronorm.study.images import share_ratio
from pyronorm.study.study import Plot, Results, Section
from pyronorm.study.table import Better, Column, Row, Table, frame, paired_reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyronorm.study.training_noise import TrainingNoiseSettings

__all__ = [
    "TEMPERED",
    "choose_levels",
    "choose_main",
    "in_words",
    "paired_interval",
    "sections",
]

_PLAIN, _TWO, _DROPOUT = "batch", "ensemble of 2", "dropout"
_NLL = "calibrated_nll"
TEMPERED = (
    Column(
        _NLL,
        "calibrated NLL",
        3,
        Better.LOWER,
        "NLL of the test data at the temperature that is best for the validation images.",
    ),
    Column("calibrated_ece", "calibrated ECE", 3, Better.LOWER, "ECE at this temperature."),
    Column(
        "temperature",
        "T",
        2,
        Better.NEITHER,
        "The one that is best for the validation images.",
    ),
)
_CHOSEN = Column(
    "chosen",
    "n or rate",
    2,
    Better.NEITHER,
    "The n of the noise or the rate of dropout with the lowest calibrated NLL on validation images, "
    "chosen for each seed by itself; the mean over seeds.",
)
_PASSES = Column(
    "passes", "passes", 0, Better.NEITHER, "Passes through a network for one prediction."
)
_RULED = (", noise", "dropout")  # with a choice by temperature, too
_ONE_PASS, _BY_TEMPERATURE = ", no averaging", ", by temperature"
_NEUTRAL = ", neutral statistics"  # of the training that was chosen with those of each draw


def choose_levels(rows: Sequence[Row]) -> list[Row]:
    """Of every method with several strengths, the one with the lowest calibrated validation NLL.

    Rows with neutral statistics take the strength that was chosen with those of each draw. What is not
    averaged has a choice of its own. For noise and dropout in training there is a second choice, *by
    temperature*: the strength whose temperature for the validation images is nearest to 1.

    Returns:
        Rows without conditions, with the strength in the value ``chosen``.
    """
    best = _smallest(rows, lambda row: row.values["validation_nll"])
    nearest = _smallest(rows, lambda row: abs(math.log(row.values["temperature"])))
    levels: dict[str, set[str | int | float]] = {}
    for row in rows:
        if "level" in row.condition:
            levels.setdefault(row.method, set()).add(row.condition["level"])
    found = []
    for row in rows:
        level = row.condition.get("level")
        if level is None:
            found.append(row)
            continue
        values = {**row.values, "chosen": float(level)}
        if level == best[row.method.removesuffix(_NEUTRAL), row.seed]:
            found.append(Row(row.method, row.seed, values))
        several = len(levels[row.method]) > 1
        if several and row.method.endswith(_RULED) and level == nearest[row.method, row.seed]:
            found.append(Row(f"{row.method}{_BY_TEMPERATURE}", row.seed, values))
    return found


def choose_main(rows: Sequence[Row]) -> list[Row]:
    """Each method as it should be used: averaged, statistics of each draw, strengths chosen by NLL."""
    return [r for r in rows if not r.method.endswith((_ONE_PASS, _NEUTRAL, _BY_TEMPERATURE))]


def in_words(method: str) -> str:
    """A method for readers, such as "batch normalization trained with noise, not averaged"."""
    for end, words in (
        (_NEUTRAL, "with neutral statistics"),
        (_ONE_PASS, "not averaged"),
        (_BY_TEMPERATURE, "chosen by temperature"),
    ):
        if method.endswith(end):
            return f"{in_words(method.removesuffix(end))} ({words})"
    if method.startswith("ensemble of "):
        return f"{method} plain networks"
    name, _, kind = method.partition(", ")
    whole = {_PLAIN: "plain batch normalization", _DROPOUT: "Monte-Carlo dropout"}
    if not kind:
        return whole.get(name, f"{name} normalization without noise")
    kinds = {
        "own noise after training": "with its own noise added after training",
        "noise after training": "with noise added after training",
        "noise": "trained with noise",
        "noise per example": "trained with noise for each example",
    }
    return f"{name} normalization {kinds.get(kind, kind)}"


def _smallest(
    rows: Sequence[Row], criterion: Callable[[Row], float]
) -> dict[tuple[str, int], str | int | float]:
    """The strength with the smallest value, by method and seed."""
    least: dict[tuple[str, int], float] = {}
    chosen: dict[tuple[str, int], str | int | float] = {}
    for row in rows:
        key = (row.method, row.seed)
        if "level" in row.condition and criterion(row) < least.get(key, math.inf):
            least[key], chosen[key] = criterion(row), row.condition["level"]
    return chosen


def sections(settings: TrainingNoiseSettings, results: Results) -> Sequence[Section]:
    """Methods beside ensembles; every strength of noise."""
    ensembles = [row for row in results.rows if row.method == "ensemble"]
    others = [row for row in results.rows if row.method != "ensemble"]
    main = _with_differences(
        [
            *choose_levels(others),
            *(
                Row(f"ensemble of {row.condition['level']:g}", row.seed, row.values)
                for row in ensembles
                if row.condition["level"] != 1
            ),
        ]
    )
    training = settings.training
    size = "all other" if settings.num_train is None else f"{settings.num_train:,}"
    text = (
        "What is noise in training worth: one network against ensembles of plain ones, against "
        "dropout, and against noise that is added after training?\n\n"
        f"Data `{settings.data}`, {size} training images, network `{settings.network}`, "
        f"{training.epochs} epochs with batch size {training.batch_size}, AdamW from {training.lr} "
        f"annealed to 0, weight decay {training.weight_decay}. {settings.num_validation:,} validation "
        "images choose a temperature for each method, the n of the noise and the rate of dropout. Each "
        "seed has images of its own, and its own ensemble; that of m networks is the average over all "
        f"choices of m from {settings.members}. {settings.num_samples} draws per prediction, each with "
        "batch statistics of its own."
    )
    levels = [row for row in others if "level" in row.condition]
    table = Table(
        "One network and ensembles",
        main,
        (*columns("accuracy", "nll", "ece"), *TEMPERED),
        baseline=_PLAIN,
        resampled=share_ratio(settings.data),
        details=(_CHOSEN, _PASSES, *columns("relative_train_time")),
        words={row.method: in_words(row.method) for row in main},
    )
    task = f"with {size.removesuffix(' other')} training images"
    answers = [
        headline({task: judge_methods(table, TEMPERED[0])}),
        _answer(main, ensembles, table.resampled),
    ]
    return [
        Section(
            "Results",
            text,
            [table],
            [
                Plot(
                    "equivalent",
                    "Calibrated NLL minus that of one plain network of the same seed (the mean over the "
                    "members of its ensemble; dashed): dots for seeds, joined by lines, diamonds and "
                    "bars for their mean and its 95 % interval. Dotted: an ensemble of two.",
                    partial(_draw_ensembles, main, ensembles, table.resampled),
                    (8.0, 5.5),
                ),
                Plot(
                    "levels",
                    "Calibrated NLL by the strength of noise and dropout, means over seeds and "
                    "standard errors; strongest left. Dashed: without either.",
                    partial(_draw_levels, levels, main),
                    (9.0, 4.0),
                ),
            ],
            "\n\n".join(part for part in answers if part),
        ),
        Section(
            "Every strength",
            "",
            [
                Table(
                    "By strength",
                    levels,
                    (*columns("accuracy", "nll"), *TEMPERED, *columns("realized_noise")),
                    by=("method", "level"),
                )
            ],
        ),
    ]


def _with_differences(rows: Sequence[Row]) -> list[Row]:
    seconds = {row.seed: row.values["train_seconds"] for row in rows if row.method == _PLAIN}
    return [
        Row(
            row.method,
            row.seed,
            {
                **row.values,
                **(
                    {"relative_train_time": row.values["train_seconds"] / seconds[row.seed]}
                    if row.seed in seconds
                    else {}
                ),
            },
        )
        for row in rows
    ]


def _series(rows: Sequence[Row], method: str) -> pd.Series:
    return pd.Series({row.seed: row.values[_NLL] for row in rows if row.method == method})


def paired_interval(
    a: pd.Series, b: pd.Series, resampled: float = 0.0
) -> tuple[float, float, float]:
    """Mean of ``a - b`` over common seeds, and its 95 % interval by Student's t.

    With random splits of one data set, ``resampled`` is as in :class:`pyronorm.study.Table`.
    """
    gain = (a - b).dropna()
    mean, reach = float(gain.mean()), paired_reach(gain, resampled)
    return mean, mean - reach, mean + reach


def _answer(main: Sequence[Row], ensembles: Sequence[Row], resampled: float) -> str:
    """Intervals against the plain network, an ensemble of two and dropout; equivalents."""
    curves = frame(ensembles)
    if not len(curves) or len(curves["seed"].unique()) < 3:
        return "Fewer than three seeds: no intervals."
    curve = curves.pivot_table(index="seed", columns="level", values=_NLL).dropna()
    lines = []
    for method in dict.fromkeys(row.method for row in main):
        mine = _series(main, method)
        seeds = [seed for seed in curve.index if seed in mine.index]
        if method == _PLAIN or method.startswith("ensemble") or len(seeds) < 3:
            continue
        equivalent = ensemble_equivalent(
            torch.tensor(curve.loc[seeds].to_numpy()), torch.tensor(mine[seeds].to_numpy())
        )
        parts = []
        for rival, words in _rivals(method).items():
            other = _series(main, rival)
            if rival != method and len(other.index.intersection(seeds)) >= 3:
                mean, low, high = paired_interval(mine, other, resampled)
                parts.append(f"{words} {mean:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"- {in_words(method)}: {equivalent} networks; against {', '.join(parts)}")
    if not lines:
        return ""
    head = (
        "Calibrated NLL in units of plain networks (deep ensemble equivalent), and differences from "
        "the plain network, from ensembles of two and from dropout: means and 95 % intervals, paired by "
        "seed, each on its own:"
    )
    return f"{head}\n\n" + "\n".join(lines)


def _rivals(method: str) -> dict[str, str]:
    """What a method is compared with, and how to say it: also with itself as it should be used."""
    rivals = {
        _PLAIN: "the plain network",
        _TWO: "two",
        _DROPOUT: "dropout",
        f"{_DROPOUT}{_ONE_PASS}": "dropout without averaging",
    }
    itself = method.removesuffix(_ONE_PASS).removesuffix(_NEUTRAL).removesuffix(_BY_TEMPERATURE)
    return rivals if itself in rivals else {**rivals, itself: in_words(itself)}


def _draw_ensembles(
    main: Sequence[Row], ensembles: Sequence[Row], resampled: float, figure: Figure
) -> None:
    """Differences from a plain network, averaged over the members of the seed's ensemble."""
    axes = figure.subplots()
    single = pd.Series({r.seed: r.values[_NLL] for r in ensembles if r.condition["level"] == 1})
    methods = list(dict.fromkeys(row.method for row in main))
    methods = [m for m in methods if m != _PLAIN and not m.endswith(_NEUTRAL)]
    gains = {method: (_series(main, method) - single).dropna() for method in methods}
    for seed in single.index:
        places = [(gains[m][seed], i) for i, m in enumerate(methods) if seed in gains[m]]
        axes.plot(*zip(*places, strict=True), color="0.85", lw=0.8, zorder=0)
    for position, (method, gain) in enumerate(gains.items()):
        color = "black" if method.startswith("ensemble") else f"C{_kind(method)}"
        row = [position] * len(gain)
        axes.plot(gain, row, "o", color=color, alpha=0.35, markersize=4)
        if len(gain) > 2:
            mean, low, high = paired_interval(gain, 0 * gain, resampled)
            axes.errorbar(mean, position, xerr=[[mean - low], [high - mean]], fmt="D", color=color,
                          capsize=4)  # fmt: skip
        if method == _TWO and len(gain):
            axes.axvline(float(gain.mean()), color="black", linestyle=":", lw=1)
    axes.axvline(0.0, color="0.5", linestyle="--", lw=1)
    axes.set_yticks(range(len(methods)), [in_words(method) for method in methods])
    axes.invert_yaxis()
    axes.set_xlabel("calibrated NLL minus that of one plain network (nats)")
    axes.grid(axis="x", alpha=0.3)


def _kind(method: str) -> int:
    """A color for each normalizer, and one for dropout."""
    return ("batch", "weight", _DROPOUT, "analytic", "group").index(method.split(",")[0])


def _draw_levels(levels: Sequence[Row], main: Sequence[Row], figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    data = frame([row for row in levels if not row.method.endswith(_NEUTRAL)])
    for method, group in data.groupby("method", sort=False):
        axes = right if method.startswith(_DROPOUT) else left
        values = group.groupby("level")[_NLL]
        error = values.sem() if group["seed"].nunique() > 1 else None
        axes.errorbar(
            values.mean().index,
            values.mean(),
            error,
            marker="o",
            capsize=3,
            label=in_words(str(method)),
        )
    plain = _series(main, _PLAIN)
    for axes in (left, right):
        if len(plain):
            axes.axhline(float(plain.mean()), color="0.5", linestyle="--")
        axes.legend(fontsize="small")
    left.set_xscale("log", base=2)
    ticks = sorted(set(data[~data["method"].str.startswith(_DROPOUT)]["level"]))
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set(xlabel="n of the noise", ylabel="calibrated NLL (nats)")
    right.invert_xaxis()
    right.set(xlabel="rate of dropout")
