"""The report on noise in training: choices on validation images, intervals, equivalents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch

from pyronorm.diagnostics import ensemble_equivalent
from pyronorm.study.columns import columns
from pyronorm.study.study import Plot, Results, Section
from pyronorm.study.table import LEVEL, Better, Column, Row, Table, frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyronorm.study.training_noise import TrainingNoiseSettings

__all__ = ["choose_levels", "sections"]

_PLAIN, _TWO, _DROPOUT, _NOISE = "batch", "ensemble of 2", "dropout", "batch, noise"
_NLL = "calibrated_nll"
_TEMPERED = (
    Column(
        _NLL,
        "calibrated NLL",
        3,
        Better.LOWER,
        "NLL of the test data at the temperature that is best for the validation images.",
    ),
    Column("calibrated_ece", "calibrated ECE", 3, Better.LOWER, "ECE at this temperature."),
    Column("temperature", "T", 2, Better.NEITHER, "This temperature."),
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
_REST = (", no averaging", ", neutral statistics")  # of the same training
_AFTER = "batch, noise after training"


def choose_levels(rows: Sequence[Row]) -> list[Row]:
    """Of every method with several strengths, the one with the lowest calibrated validation NLL.

    Rows of the same training (without averaging, with other statistics) take the strength that was
    chosen for it.

    Returns:
        Rows without conditions, with the strength in the value ``chosen``.
    """
    chosen: dict[tuple[str, int], float] = {}
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        key = (row.method, row.seed)
        if "level" in row.condition and row.values["validation_nll"] < best.get(key, float("inf")):
            best[key] = row.values["validation_nll"]
            chosen[key] = float(row.condition["level"])
    found = []
    for row in rows:
        level = row.condition.get("level")
        if level is None:
            found.append(row)
            continue
        of = next((row.method.removesuffix(end) for end in _REST if row.method.endswith(end)), "")
        if float(level) == chosen[of or row.method, row.seed]:
            found.append(Row(row.method, row.seed, {**row.values, "chosen": float(level)}))
    return found


def sections(settings: TrainingNoiseSettings, results: Results) -> Sequence[Section]:
    """Methods beside ensembles; every strength of noise; other regularizers."""
    alone = [row for row in results.rows if "beside" not in row.condition]
    ensembles = [row for row in alone if row.method == "ensemble"]
    others = [row for row in alone if row.method != "ensemble"]
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
    levels = [row for row in others if "level" in row.condition and not row.method.endswith(_REST)]
    made = [
        Section(
            "Results",
            text,
            [
                Table(
                    "One network and ensembles",
                    main,
                    (
                        *columns("accuracy", "nll"),
                        *_TEMPERED,
                        *columns("ece", "relative_train_time"),
                        _PASSES,
                        _CHOSEN,
                    ),
                    baseline=_PLAIN,
                )
            ],
            [
                Plot(
                    "equivalent",
                    "Calibrated NLL of ensembles by their number of networks, and of single networks "
                    "(lines); means over seeds and 95 % intervals of the mean.",
                    partial(_draw_ensembles, main, ensembles),
                ),
                Plot(
                    "levels",
                    "Calibrated NLL by the strength of noise and dropout, means over seeds and "
                    "standard errors; strongest left. Dashed: without either.",
                    partial(_draw_levels, levels, main),
                    (9.0, 4.0),
                ),
            ],
            _answer(main, ensembles),
        ),
        Section(
            "Every strength",
            "",
            [
                Table(
                    "By strength",
                    levels,
                    (*columns("accuracy", "nll"), *_TEMPERED, *columns("realized_noise")),
                    by=("method", "level"),
                )
            ],
        ),
    ]
    beside = [row for row in results.rows if "beside" in row.condition]
    if beside:
        text = (
            f"Weight decay {settings.decay:g}; augmentation: pad by 4 pixels, crop and flip. Noise of "
            f"n = {settings.regularized_noise:g}, dropout of {settings.regularized_dropout:g}."
        )
        kept = [
            Row(row.method, row.seed, row.values, {"beside": row.condition["beside"]})
            for row in beside
            if not row.method.endswith(_REST)
        ]
        table = Table(
            "Beside other regularizers",
            kept,
            (*columns("accuracy", "nll"), *_TEMPERED),
            by=("beside", "method"),
            within=("beside",),
            baseline=_PLAIN,
        )
        made.append(Section("Other regularizers", text, [table]))
    return made


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


def paired_interval(a: pd.Series, b: pd.Series) -> tuple[float, float, float]:
    """Mean of ``a - b`` over common seeds, and its 95 % interval by Student's t."""
    from scipy.stats import t as student

    gain = (a - b).dropna()
    reach = float(student.isf(LEVEL / 2, len(gain) - 1)) * float(gain.sem())
    mean = float(gain.mean())
    return mean, mean - reach, mean + reach


def _answer(main: Sequence[Row], ensembles: Sequence[Row]) -> str:
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
        for rival, words in ((_PLAIN, "the plain network"), (_TWO, "two"), (_DROPOUT, "dropout")):
            other = _series(main, rival)
            if rival != method and len(other.index.intersection(seeds)) >= 3:
                mean, low, high = paired_interval(mine, other)
                parts.append(f"{words} {mean:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"- `{method}`: {equivalent} networks; against {', '.join(parts)}")
    if not lines:
        return ""
    head = (
        "Calibrated NLL in units of plain networks (deep ensemble equivalent), and differences from "
        "the plain network, from ensembles of two and from dropout; 95 % intervals, paired by seed:"
    )
    return f"{head}\n\n" + "\n".join(lines)


def _draw_ensembles(main: Sequence[Row], ensembles: Sequence[Row], figure: Figure) -> None:
    axes = figure.subplots()
    curve = frame(ensembles).groupby("level")[_NLL]
    few = frame(ensembles)["seed"].nunique() < 3
    axes.errorbar(
        curve.mean().index, curve.mean(), None if few else _reach(curve), marker="o", capsize=3,
        color="black", label="ensembles of plain networks",
    )  # fmt: skip
    shown = [m for m in dict.fromkeys(row.method for row in main) if _is_shown(m)]
    for number, method in enumerate(shown):
        values = _series(main, method)
        axes.axhline(float(values.mean()), color=f"C{number}", label=method)
        if len(values) > 2:
            _, low, high = paired_interval(values, 0 * values)
            axes.axhspan(low, high, color=f"C{number}", alpha=0.12, lw=0)
    axes.set_xticks(sorted(curve.mean().index))
    axes.set(xlabel="networks in the ensemble", ylabel="calibrated NLL (nats)")
    axes.legend(fontsize="small")


def _is_shown(method: str) -> bool:
    return not method.startswith("ensemble") and not method.endswith(_REST) and method != _PLAIN


def _reach(curve: pd.api.typing.SeriesGroupBy) -> pd.Series:
    from scipy.stats import t as student

    return curve.sem() * student.isf(LEVEL / 2, curve.count() - 1)


def _draw_levels(levels: Sequence[Row], main: Sequence[Row], figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    data = frame(levels)
    for method, group in data.groupby("method", sort=False):
        axes = right if method == _DROPOUT else left
        values = group.groupby("level")[_NLL]
        error = values.sem() if group["seed"].nunique() > 1 else None
        axes.errorbar(
            values.mean().index, values.mean(), error, marker="o", capsize=3, label=method
        )
    plain = _series(main, _PLAIN)
    for axes in (left, right):
        if len(plain):
            axes.axhline(float(plain.mean()), color="0.5", linestyle="--")
        axes.legend(fontsize="small")
    left.set_xscale("log", base=2)
    ticks = sorted(set(data[data["method"] != _DROPOUT]["level"]))
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set(xlabel="n of the noise", ylabel="calibrated NLL (nats)")
    right.invert_xaxis()
    right.set(xlabel="rate of dropout")
