"""The answer of a comparison in a sentence or two, with how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyronorm.study.table import (
    LEVEL,
    Column,
    Table,
    find_rejected,
    frame,
    paired_p_value,
    paired_reach,
)

__all__ = ["Verdict", "answer", "headline", "judge_methods"]

_POWER = 0.8


@dataclass(frozen=True, eq=False)
class Verdict:
    """What tests say about a table's methods against its baseline.

    Attributes:
        table: the table.
        column: what is compared, lower being better.
        level: the baseline's mean.
        gains: of each other method the differences from the baseline, by seed.
        found: the methods that differ: two-sided t-tests paired by seed, 5 % for all together (Holm).
        seeds: the smallest number of seeds of a method.
    """

    table: Table
    column: Column
    level: float
    gains: Mapping[str, pd.Series]
    found: Sequence[str]
    seeds: int

    @property
    def tested(self) -> bool:
        """Whether there are seeds enough for tests."""
        return self.seeds >= self.table.least_seeds

    @property
    def better(self) -> list[str]:
        """Methods that are better than the baseline, the best first."""
        return [name for name in self.by_mean if name in self.found and self.mean(name) < 0]

    @property
    def worse(self) -> list[str]:
        """Methods that are worse than the baseline, the worst first."""
        return [name for name in self.by_mean[::-1] if name in self.found and self.mean(name) > 0]

    @property
    def by_mean(self) -> list[str]:
        """All methods but the baseline, the lowest on average first."""
        return sorted(self.gains, key=self.mean)

    def mean(self, name: str) -> float:
        """A method's mean difference."""
        return float(self.gains[name].mean())

    def named(self, name: str) -> str:
        """A method, the baseline too, in words if there are any."""
        return self.table.words.get(name) or f"`{name}`"

    def text(self, value: float, sign: str = "") -> str:
        """A value with the column's decimals."""
        return f"{value:{sign}.{self.column.digits}f}"

    def interval(self, name: str, opening: str = " (", closing: str = ")") -> str:
        """A method's mean difference and its 95 % interval, in brackets."""
        mean, reach = self.mean(name), paired_reach(self.gains[name], self.table.resampled)
        low, high = (self.text(mean + side * reach, "+") for side in (-1, 1))
        return f"{self.text(mean, '+')}{opening}95 % interval {low} to {high}{closing}"

    @property
    def visible(self) -> str:
        """The smallest difference that would have been seen, with 80 % power.

        For the median spread of the differences.
        """
        from scipy.stats import t as student

        def smallest(gain: pd.Series) -> float:
            freedom = len(gain) - 1
            # The first of the Holm tests has the strictest level.
            quantiles = student.isf(LEVEL / 2 / len(self.gains), freedom)
            quantiles += student.isf(1 - _POWER, freedom)
            return float(quantiles) * _scale(gain, self.table)

        return self.text(float(np.median([smallest(gain) for gain in self.gains.values()])))


def judge_methods(table: Table, column: Column) -> Verdict | None:
    """Test which methods of a table differ from its baseline.

    Two-sided t-tests paired by seed, at 5 % for all methods together (Holm), allowing for shared
    examples of random splits where the table says so.

    Args:
        table: with a baseline and a line per method.
        column: what is compared, lower being better.

    Returns:
        The verdict; None if the baseline or all others have no values.
    """
    data = frame(table.rows)
    if column.name not in data or table.baseline is None:
        return None
    series = {
        str(method): group.set_index("seed")[column.name].dropna()
        for method, group in data.groupby("method", sort=False)
    }
    base = series.pop(table.baseline, pd.Series(dtype=float))
    gains = {name: (values - base).dropna() for name, values in series.items()}
    gains = {name: gain for name, gain in gains.items() if len(gain)}
    if not gains:
        return None
    seeds = min(len(gain) for gain in gains.values())
    found: list[str] = []
    if seeds >= table.least_seeds:
        p = np.array([paired_p_value(series[name], base, table.resampled) for name in gains])
        found = [name for name, no in zip(gains, find_rejected(p), strict=True) if no]
    return Verdict(table, column, float(base.mean()), gains, found, seeds)


def answer(table: Table, column: Column, margin: float | None = None) -> str:
    """Say which methods beat or lose against the baseline, by how much, and what could have been seen.

    The tests are those of :func:`judge_methods`. The smallest difference that could have been seen is
    that of 80 % power for the median spread of the differences.

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
    verdict = judge_methods(table, column)
    if verdict is None:
        return ""
    seeds, best = verdict.seeds, verdict.by_mean[0]
    base = verdict.named(str(table.baseline))
    level = f"{base[:1].upper()}{base[1:]} has a {column.heading} of {verdict.text(verdict.level)}."
    if not verdict.tested:
        return (
            f"**{seeds} seed{'s answer' if seeds > 1 else ' answers'} nothing**: differences are tested "
            f"from {table.least_seeds} on. {level} The lowest on average is {verdict.named(best)}, by "
            f"{verdict.text(-verdict.mean(best))}."
        )
    # In the order of the table's lines.
    better, worse = (
        [verdict.named(name) for name in verdict.gains if name in names]
        for names in (verdict.better, verdict.worse)
    )
    if not verdict.found:
        head = f"**No method differs from {base}** in {column.heading}."
    else:
        parts = [
            f"{_join(names)} {'is' if len(names) == 1 else 'are'} {word}"
            for names, word in ((better, "better"), (worse, "worse"))
            if names
        ]
        head = f"**{' and '.join(parts)} than {base}** in {column.heading}."
    shown = [name for name in verdict.gains if name in (verdict.better or [best])]
    same = "" if margin is None else " " + _equivalence(verdict, margin)
    intervals = "; ".join(f"{verdict.named(name)} {verdict.interval(name)}" for name in shown)
    return (
        f"{head} {level} Against it: {intervals}. Two-sided t-tests paired by seed, {seeds} seeds, 5 % "
        f"for all methods together (Holm); differences above {verdict.visible} would "
        f"have been seen in four cases of five.{same}"
    )


def headline(tasks: Mapping[str, Verdict | None]) -> str:
    """One sentence on several tasks: what differs from the baseline of each, by how much, how sure.

    Args:
        tasks: verdicts by what begins each part of the sentence, such as "with 200 images"; None where
            there is nothing to compare yet.

    Returns:
        Markdown.
    """
    sentence = "; ".join(_task(task, verdict) for task, verdict in tasks.items())
    tested = [verdict for verdict in tasks.values() if verdict is not None and verdict.tested]
    how = ""
    if tested:
        column = tested[0].column
        numbers = " and ".join(dict.fromkeys(str(verdict.seeds) for verdict in tested))
        how = (
            f" ({column.heading}, the lower the better; t-tests paired by seed, {numbers} seeds, 5 % "
            "for the methods of a task together)"
        )
    return f"**{sentence[:1].upper()}{sentence[1:]}**{how}."


def _task(task: str, verdict: Verdict | None) -> str:
    if verdict is None:
        return f"{task} there is nothing to compare yet"
    base = verdict.named(str(verdict.table.baseline))
    if not verdict.tested:
        seeds = f"{verdict.seeds} seed{'s test' if verdict.seeds > 1 else ' tests'} nothing"
        return f"{task} {seeds} (differences are tested from {verdict.table.least_seeds} on)"
    number = len(verdict.gains)
    if not verdict.found:
        which = "the other method is not" if number == 1 else f"none of {number} other methods is"
        best = verdict.by_mean[0]
        return (
            f"{task} {which} shown to differ from {base} (lowest on average: {verdict.named(best)}, "
            f"{verdict.interval(best, ', ', '')}; a difference of {verdict.visible} would have been "
            "seen in four cases of five)"
        )
    parts = []
    for names, word in ((verdict.better, "better"), (verdict.worse, "worse")):
        if names:
            said = [verdict.named(name) for name in names]
            most = "" if len(names) == 1 else f"{said[0]} "
            verb = "is" if len(names) == 1 else "are"
            parts.append(
                f"{_join(said)} {verb} {word} than {base} ({most}{verdict.interval(names[0], ', ', '')})"
            )
    rest = number - len(verdict.found)
    left = ""
    if rest:
        left = (
            f", and {rest} of {number} {'is' if rest == 1 else 'are'} not shown to differ (a difference "
            f"of {verdict.visible} would have been seen in four cases of five)"
        )
    return f"{task} {' and '.join(parts)}{left}"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _scale(gain: pd.Series, table: Table) -> float:
    return float(gain.std(ddof=1) * math.sqrt(1 / len(gain) + table.resampled))


def _equivalence(verdict: Verdict, margin: float) -> str:
    """Which methods are as good as the baseline, as far as it matters."""
    from scipy.stats import t as student

    table = verdict.table

    def reach(gain: pd.Series) -> float:
        return float(student.isf(LEVEL, len(gain) - 1)) * _scale(gain, table)

    same = [
        verdict.named(name)
        for name, gain in verdict.gains.items()
        if abs(float(gain.mean())) + reach(gain) < margin
    ]
    near = (
        f"{verdict.text(margin)} of {verdict.named(str(table.baseline))} (two one-sided tests, 5 %)"
    )
    if not same:
        return f"No method is shown to lie within {near}: no difference seen is not equality."
    return f"Equivalent, within {near}: {_join(same)}; of no other has that been shown."
