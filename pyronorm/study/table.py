"""Rows of results become a table: means, spread, and which differences are significant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyronorm.checks import Count, NotNegative, check_fields, checked
from pyronorm.errors import OptionError

__all__ = [
    "LEVEL",
    "Better",
    "Cell",
    "Column",
    "Row",
    "Table",
    "find_rejected",
    "frame",
    "paired_p_value",
    "paired_reach",
    "summarize",
]

LEVEL = 0.05


class Better(Enum):
    """Which values of a column are good."""

    LOWER = -1
    NEITHER = 0
    HIGHER = 1


@dataclass(frozen=True)
class Column:
    """A quantity in a table.

    Attributes:
        name: its key in the rows.
        heading: above the column.
        digits: decimals shown.
        better: which values are good.
        definition: one sentence for the report, with units.
        interval: whether the values are differences, shown with the 95 % interval of their mean instead
            of their standard deviation.
    """

    name: str
    heading: str
    digits: int
    better: Better
    definition: str
    interval: bool = False


@dataclass(frozen=True)
class Row:
    """What one method reached with one seed, under one condition.

    Attributes:
        method: the method's name.
        seed: the seed.
        values: quantities by name; NaN where one is undefined.
        condition: what else distinguishes the row, e.g. ``{"batch size": 32}``.
    """

    method: str
    seed: int
    values: Mapping[str, float]
    condition: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str | int | float]:
        """Method and condition."""
        return {"method": self.method, **self.condition}


@dataclass(frozen=True)
class Table:
    """Rows and columns to show.

    Attributes:
        title: above the table.
        rows: all different in method, condition or seed; those that differ in labels that make no
            line are averaged.
        columns: what to show of them; a column without any value is left out.
        by: labels that make a line, in the order of the leading columns.
        within: labels within whose values lines are compared, e.g. ``("batch size",)``.
        baseline: method that the others are compared with, where it has one line; None for none.
        resampled: where seeds are random splits of one data set, the number of test examples over that
            of training examples; 0 where they are not.
        least_seeds: with fewer seeds no difference is marked.
        details: further columns, shown in a table of their own that is folded at first.
        words: methods in words, by name; those without keep their names.

    Raises:
        OptionError: if a row has not all the labels that make a line, two rows have the same labels
            and seed, or ``within`` names others.
    """

    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    by: Sequence[str] = ("method",)
    within: Sequence[str] = ()
    baseline: str | None = None
    resampled: NotNegative = 0.0
    least_seeds: Count = 5
    details: Sequence[Column] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        _check(self)


@dataclass(frozen=True)
class Cell:
    """One entry: mean and (unbiased) standard deviation over seeds.

    Attributes:
        mean: mean over seeds; NaN if there is no value.
        sd: NaN for a single seed, and where a value is infinite.
        seeds: number of seeds that have a value.
        best: better than every other line, each by a paired t-test at 5 %.
        differs: different from the baseline by a paired t-test, 5 % for the column (Holm).
        reach: half of the 95 % interval of the mean; NaN for a single seed.
    """

    mean: float
    sd: float
    seeds: int
    best: bool = False
    differs: bool = False
    reach: float = math.nan

    def text(self, digits: int, interval: bool = False) -> str:
        """``mean±sd``, the mean alone for a single seed, ``–`` for nothing.

        Args:
            digits: decimals.
            interval: show the sign and the 95 % interval instead of the standard deviation.
        """
        if not np.isfinite(self.mean):
            return "–" if np.isnan(self.mean) else f"{self.mean:g}"
        if interval:
            mean = f"{self.mean:+.{digits}f}"
            if np.isnan(self.reach):
                return mean
            low, high = (f"{self.mean + side * self.reach:+.{digits}f}" for side in (-1, 1))
            return f"{mean} ({low} to {high})"
        if np.isnan(self.sd):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f}±{self.sd:.{digits}f}"


@checked
def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """All rows as a data frame: labels, seed, values."""
    return pd.DataFrame([{**row.labels, "seed": row.seed, **row.values} for row in rows])


@checked
def summarize(table: Table) -> tuple[list[Column], dict[tuple[object, ...], list[Cell]]]:
    r"""Mean, spread and significance over seeds.

    The best line of a column is marked if a two-sided t-test, paired by seed, tells it from *each*
    other line at 5 %; since all of these have to reject, that needs no correction (an
    intersection-union test). Differences from the baseline are tested likewise, corrected by Holm for
    the lines of the column. Quantities that are neither good nor bad are not tested. Seeds that only
    one of two lines has are left out of their test. With fewer than ``least_seeds`` nothing is marked,
    nor where a difference is the same for all seeds: there is no spread to test with, and shares of few
    examples agree so by chance.

    Random splits of one data set share examples, so differences vary less between them than between
    data sets: the variance :math:`s^2/J` of a mean over ``J`` splits becomes
    :math:`s^2 (1/J + n_{\text{test}}/n_{\text{train}})` (Nadeau & Bengio, "Inference for the
    Generalization Error", 2003) where the table says so by ``resampled``.

    Args:
        table: what to show.

    Returns:
        The columns that have values, and for each line, by its labels, their cells.
    """
    data = frame(table.rows)
    columns = [c for c in table.columns if c.name in data and data[c.name].notna().any()]
    lines = list(dict.fromkeys(tuple(row.labels[by] for by in table.by) for row in table.rows))
    values = {
        c.name: {
            line: group.set_index("seed")[c.name].dropna().groupby("seed").mean()
            for line, group in _groups(data, table.by)
        }
        for c in columns
    }
    cells: dict[tuple[object, ...], list[Cell]] = {line: [] for line in lines}
    for column in columns:
        series = values[column.name]
        best, differs = _marks(table, lines, series, column.better)
        for line in lines:
            found = series[line]
            mean, sd = _mean_and_sd(found.to_numpy(dtype=float))
            reach = paired_reach(found, table.resampled)
            cells[line].append(Cell(mean, sd, len(found), line in best, line in differs, reach))
    return columns, cells


def _check(table: Table) -> None:
    for row in table.rows:
        missing = [name for name in table.by if name not in row.labels]
        if missing:
            raise OptionError(
                f"table {table.title!r}: a row of {row.method} has the labels "
                f"{', '.join(row.labels)}, and not {', '.join(missing)}."
            )
    seen: set[tuple[object, ...]] = set()
    for row in table.rows:
        key = (row.seed, *row.labels.items())
        if key in seen:
            raise OptionError(
                f"table {table.title!r}: two rows have the labels {row.labels} and seed {row.seed}; "
                "each needs a condition or a method of its own."
            )
        seen.add(key)
    unknown = [name for name in table.within if name not in table.by]
    if unknown:
        raise OptionError(
            f"table {table.title!r}: within has {', '.join(unknown)}, lines are made by "
            f"{', '.join(table.by)}."
        )


def _mean_and_sd(values: NDArray[np.float64]) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # of infinite values
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _groups(data: pd.DataFrame, by: Sequence[str]) -> list[tuple[tuple[object, ...], pd.DataFrame]]:
    grouped = data.groupby(list(by), sort=False, dropna=False)
    return [(key if isinstance(key, tuple) else (key,), group) for key, group in grouped]


def _marks(
    table: Table,
    lines: Sequence[tuple[object, ...]],
    series: Mapping[tuple[object, ...], pd.Series],
    better: Better,
) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    """Lines that are best, and lines that differ from the baseline, each within its group."""
    best: set[tuple[object, ...]] = set()
    differs: set[tuple[object, ...]] = set()
    position = [list(table.by).index(name) for name in table.within]
    groups: dict[tuple[object, ...], list[tuple[object, ...]]] = {}
    for line in lines:
        if len(series[line]):
            groups.setdefault(tuple(line[i] for i in position), []).append(line)
    for members in groups.values():
        if better is not Better.NEITHER and len(members) > 1:
            good = {line: better.value * series[line] for line in members}
            top = max(members, key=lambda line: _mean_and_sd(good[line].to_numpy(dtype=float))[0])
            rivals = [line for line in members if line != top]
            if all(_beats(good[top], good[line], table) for line in rivals):
                best.add(top)
        if better is not Better.NEITHER and table.baseline is not None and "method" in table.by:
            method = list(table.by).index("method")
            base = [line for line in members if line[method] == table.baseline]
            others = [line for line in members if line[method] != table.baseline]
            if len(base) == 1 and others:
                p = np.array([_test(series[line], series[base[0]], table) for line in others])
                chosen = zip(others, find_rejected(p), strict=True)
                differs.update(line for line, rejected in chosen if rejected)
    return best, differs


def _beats(a: pd.Series, b: pd.Series, table: Table) -> bool:
    """Whether ``a`` is significantly higher, over the seeds that both have."""
    return _test(a, b, table) < LEVEL and float((a - b).mean()) > 0


def _test(a: pd.Series, b: pd.Series, table: Table) -> float:
    common = len(a.index.intersection(b.index))
    return paired_p_value(a, b, table.resampled) if common >= table.least_seeds else 1.0


def paired_p_value(a: pd.Series, b: pd.Series, resampled: float) -> float:
    """Two-sided t-test of the differences of common seeds; 1 where there is nothing to test."""
    from scipy.stats import t as student
    from scipy.stats import ttest_1samp

    a, b = a.align(b, join="inner")
    if len(a) < 2 or not np.isfinite([a, b]).all():
        return 1.0
    difference = (a - b).to_numpy(dtype=float)
    # No spread but that of rounding.
    if np.ptp(difference) <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        return 1.0
    if not resampled:
        return float(ttest_1samp(difference, 0.0).pvalue)
    splits = len(difference)
    scale = difference.std(ddof=1) * math.sqrt(1 / splits + resampled)
    return float(2 * student.sf(abs(difference.mean()) / scale, splits - 1))


def paired_reach(differences: pd.Series, resampled: float) -> float:
    """Half of the 95 % interval (Student's t) of the mean of differences; NaN for a single one.

    Args:
        differences: one a seed.
        resampled: as in :class:`Table`.
    """
    from scipy.stats import t as student

    number = len(differences)
    if number < 2:
        return math.nan
    with np.errstate(invalid="ignore"):  # of infinite values
        sd = float(differences.to_numpy(dtype=float).std(ddof=1))
    scale = sd * math.sqrt(1 / number + resampled)
    return float(student.isf(LEVEL / 2, number - 1)) * scale


def find_rejected(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rejections at LEVEL for the whole of the tests (Holm 1979)."""
    order = np.argsort(p)
    passed = p[order] <= LEVEL / (len(p) - np.arange(len(p)))
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: int(np.argmin(passed)) if not passed.all() else len(p)]] = True
    return rejected
