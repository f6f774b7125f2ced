"""The answer of a comparison in a sentence or two, with how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyronorm.study.table import LEVEL, Column, Table, find_rejected, frame, paired_p_value

__all__ = ["answer"]

_POWER = 0.8


def answer(table: Table, column: Column, margin: float | None = None) -> str:
    """Say which methods beat or lose against the baseline, by how much, and what could have been seen.

    Two-sided t-tests paired by seed, at 5 % for all methods together (Holm), allowing for shared
    examples of random splits where the table says so. The smallest difference that could have been
    seen is that of 80 % power for the median spread of the differences.

    Args:
        table: with a baseline and a line per method.
        column: what is compared, lower being better.
        margin: a difference too small to matter, positive; None where there is none. A method is called
            equivalent only if two one-sided tests at 5 %, paired by seed, both say that the
            difference is smaller (Schuirmann, "A comparison of the two one-sided tests procedure
            and the power approach", 1987), each method by itself.

    Returns:
        Markdown; empty if the baseline or all others have no values.
    """
    data = frame(table.rows)
    if column.name not in data or table.baseline is None:
        return ""
    series = {
        str(method): group.set_index("seed")[column.name].dropna()
        for method, group in data.groupby("method", sort=False)
    }
    base = series.pop(table.baseline, pd.Series(dtype=float))
    gains = {name: (values - base).dropna() for name, values in series.items()}
    gains = {name: gain for name, gain in gains.items() if len(gain)}
    if not gains:
        return ""
    best = min(gains, key=lambda name: float(gains[name].mean()))
    seeds = min(len(gain) for gain in gains.values())
    level = f"`{table.baseline}` has a {column.heading} of {base.mean():.{column.digits}f}."
    if seeds < table.least_seeds:
        return (
            f"**{seeds} seed{'s answer' if seeds > 1 else ' answers'} nothing**: differences are tested "
            f"from {table.least_seeds} on. {level} The lowest on average is `{best}`, by "
            f"{-gains[best].mean():.{column.digits}f}."
        )
    p = np.array([paired_p_value(series[name], base, table.resampled) for name in gains])
    found = [name for name, no in zip(gains, find_rejected(p), strict=True) if no]
    better = [name for name in found if gains[name].mean() < 0]
    worse = [name for name in found if gains[name].mean() > 0]
    if not found:
        head = f"**No method differs from `{table.baseline}`** in {column.heading}."
    else:
        parts = [
            f"{_names(names)} {'is' if len(names) == 1 else 'are'} {word}"
            for names, word in ((better, "better"), (worse, "worse"))
            if names
        ]
        head = f"**{' and '.join(parts)} than `{table.baseline}`** in {column.heading}."
    shown = better or [best]
    same = "" if margin is None else " " + _equivalence(gains, margin, table, column)
    intervals = "; ".join(_interval(name, gains[name], table, column) for name in shown)
    return (
        f"{head} {level} Against it: {intervals}. Two-sided t-tests paired by seed, {seeds} seeds, 5 % "
        f"for all methods together (Holm); differences above {_visible(gains, table, column)} would "
        f"have been seen in four cases of five.{same}"
    )


def _names(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _scale(gain: pd.Series, table: Table) -> float:
    values: NDArray[np.float64] = gain.to_numpy(dtype=float)
    return float(values.std(ddof=1) * math.sqrt(1 / len(values) + table.resampled))


def _interval(name: str, gain: pd.Series, table: Table, column: Column) -> str:
    from scipy.stats import t as student

    reach = float(student.isf(LEVEL / 2, len(gain) - 1)) * _scale(gain, table)
    low, high = (f"{gain.mean() + side * reach:+.{column.digits}f}" for side in (-1, 1))
    return f"`{name}` {gain.mean():+.{column.digits}f} (95 % interval {low} to {high})"


def _equivalence(gains: dict[str, pd.Series], margin: float, table: Table, column: Column) -> str:
    """Which methods are as good as the baseline, as far as it matters."""
    from scipy.stats import t as student

    def reach(gain: pd.Series) -> float:
        return float(student.isf(LEVEL, len(gain) - 1)) * _scale(gain, table)

    same = [n for n, gain in gains.items() if abs(float(gain.mean())) + reach(gain) < margin]
    near = f"{margin:.{column.digits}f} of `{table.baseline}` (two one-sided tests, 5 %)"
    if not same:
        return f"No method is shown to lie within {near}: no difference seen is not equality."
    return f"Equivalent, within {near}: {_names(same)}; of no other has that been shown."


def _visible(gains: dict[str, pd.Series], table: Table, column: Column) -> str:
    from scipy.stats import t as student

    def smallest(gain: pd.Series) -> float:
        freedom = len(gain) - 1
        # The first of the Holm tests has the strictest level.
        quantiles = student.isf(LEVEL / 2 / len(gains), freedom) + student.isf(1 - _POWER, freedom)
        return float(quantiles) * _scale(gain, table)

    return f"{float(np.median([smallest(gain) for gain in gains.values()])):.{column.digits}f}"
