"""Tables of made-up rows, whose means, deviations and tests are worked out by hand or by SciPy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats
from scipy.stats import ttest_rel

from pyronorm import study
from pyronorm.errors import OptionError
from pyronorm.study import Better, Cell, Column, Row, frame, summarize
from tests.study.marked import Table

NLL = Column("nll", "NLL", 3, Better.LOWER, "in nats")
ACCURACY = Column("accuracy", "accuracy", 2, Better.HIGHER, "a share")
SECONDS = Column("seconds", "s", 1, Better.NEITHER, "of training")
NAN, INF = math.nan, math.inf


def rows_of(
    values: Mapping[str, Sequence[float]], name: str = "nll", seeds: Sequence[int] | None = None
) -> list[Row]:
    """Seed by seed, as jobs give them."""
    number = max(map(len, values.values()))
    return [
        Row(method, (seeds or range(number))[i], {name: series[i]})
        for i in range(number)
        for method, series in values.items()
        if i < len(series)
    ]


def cells_of(
    values: Mapping[str, Sequence[float]], column: Column = NLL, baseline: str | None = None
) -> dict[str, Cell]:
    table = Table("t", rows_of(values, column.name), [column], baseline=baseline)
    columns, cells = summarize(table)
    assert columns == [column]
    return {line[0]: row[0] for line, row in cells.items()}


def marked(cells: Mapping[str, Cell], what: str) -> list[str]:
    return [name for name, cell in cells.items() if getattr(cell, what)]


def test_a_few_seeds_mark_nothing() -> None:
    rows = rows_of({"a": [1.0, 1.1, 1.2, 1.15], "b": [2.0, 2.3, 2.1, 2.2]})
    _, cells = summarize(study.Table("t", rows, [NLL], baseline="b"))
    assert not any(cell.best or cell.differs for row in cells.values() for cell in row)
    rows += [Row("a", 4, {"nll": 1.05}), Row("b", 4, {"nll": 2.15})]
    _, cells = summarize(study.Table("t", rows, [NLL], baseline="b"))
    assert cells["a",][0].best
    assert cells["a",][0].differs


# means and spread


def test_mean_and_unbiased_sd() -> None:
    values = {"a": [0.2, 0.3, 0.1, 0.7], "b": [0.06, 0.09, 0.03, 0.01]}
    for name, cell in cells_of(values).items():
        assert cell.mean == pytest.approx(statistics.mean(values[name]), rel=1e-12)
        assert cell.sd == pytest.approx(statistics.stdev(values[name]), rel=1e-12)
        assert cell.seeds == 4


def test_lines_and_columns_are_in_the_order_given() -> None:
    rows = [
        Row(method, seed, {"accuracy": 0.5 + seed / 10, "nll": 1.0, "other": 3.0})
        for seed in (7, 2)
        for method in ("z", "a", "m")
    ]
    columns, cells = summarize(Table("t", rows, [NLL, SECONDS, ACCURACY]))
    assert columns == [NLL, ACCURACY]  # nothing has seconds
    assert list(cells) == [("z",), ("a",), ("m",)]
    assert [cell.mean for cell in cells["a",]] == pytest.approx([1.0, 0.95])


def test_nan_is_no_value() -> None:
    cells = cells_of({"a": [1.0, NAN, 2.0, 6.0], "b": [NAN, NAN, 5.0, NAN], "c": [NAN] * 4})
    assert (cells["a"].mean, cells["a"].seeds) == (pytest.approx(3.0), 3)
    assert cells["a"].sd == pytest.approx(statistics.stdev([1, 2, 6]))
    assert (cells["b"].mean, cells["b"].seeds) == (5.0, 1)
    assert math.isnan(cells["b"].sd)
    assert (cells["c"].seeds, math.isnan(cells["c"].mean)) == (0, True)


def test_a_column_of_nan_alone_is_left_out() -> None:
    rows = [Row("a", seed, {"nll": NAN, "accuracy": 0.5}) for seed in range(2)]
    assert summarize(Table("t", rows, [NLL, ACCURACY]))[0] == [ACCURACY]


@pytest.mark.parametrize(("values", "mean"), [([1.0, INF, 2.0], INF), ([-INF, INF], NAN)])
def test_infinite_values(values: list[float], mean: float) -> None:
    cells = cells_of({"a": values, "b": [0.1, 0.2, 0.3], "c": [-INF, 0.2, 0.3]}, baseline="b")
    assert cells["a"].mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(cells["a"].sd)
    assert not marked(cells, "best")
    assert not marked(cells, "differs")


def test_no_rows() -> None:
    assert summarize(Table("t", [], [NLL])) == ([], {})


def test_rows_with_the_same_labels_and_seed_are_averaged() -> None:
    rows = [
        Row(method, seed, {"nll": value}, {"fold": fold})
        for method, values in {"a": ((1, 3), (5, 9)), "b": ((2, 2), (3, 5))}.items()
        for seed, folds in enumerate(values)
        for fold, value in enumerate(folds)
    ]
    (_, cells) = summarize(Table("t", rows, [NLL]))
    (a,) = cells["a",]
    assert (a.mean, a.sd, a.seeds) == (4.5, pytest.approx(statistics.stdev([2, 7])), 2)


def test_two_rows_of_one_kind_are_refused() -> None:
    rows = [Row("a", 0, {"nll": 1.0}, {"n": 3}), Row("a", 0, {"nll": 2.0}, {"n": 3})]
    with pytest.raises(OptionError, match=r"'t': two rows have the labels .*'n': 3.* and seed 0"):
        summarize(Table("t", rows, [NLL]))


def test_random_splits_of_one_data_set() -> None:
    """The corrected resampled t-test, by hand."""
    difference = np.array([0.5, 0.8, 1.1, 0.7])
    rows = [Row("a", s, {"nll": 1.0}) for s in range(4)]
    rows += [Row("b", s, {"nll": 1.0 + d}) for s, d in enumerate(difference)]
    spread = difference.std(ddof=1)
    for ratio in (0.25, 0.5, 1.0, 2.0, 4.0):
        t = difference.mean() / (spread * (1 / 4 + ratio) ** 0.5)
        expected = 2 * stats.t.sf(t, 3) < 0.05
        _, cells = summarize(Table("t", rows, [NLL], resampled=ratio, baseline="b"))
        (cell,) = cells["a",]
        assert (cell.best, cell.differs) == (expected, expected)
    assert not expected  # it makes a difference
    assert summarize(Table("t", rows, [NLL]))[1]["a",][0].best


def test_frame_has_labels_seed_and_values() -> None:
    data = frame([Row("a", 3, {"nll": 0.5}, {"batch size": 32}), Row("b", 4, {"nll": NAN})])
    assert list(data.columns) == ["method", "batch size", "seed", "nll"]
    assert data.iloc[0].tolist() == ["a", 32, 3, 0.5]
    assert math.isnan(data["batch size"][1])


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell(0.12345, 0.0678, 3), "0.123±0.068"),
        (Cell(0.12345, NAN, 1), "0.123"),
        (Cell(NAN, NAN, 0), "–"),
        (Cell(INF, NAN, 3), "inf"),
        (Cell(-INF, NAN, 3), "-inf"),
        (Cell(12.0, 0.0, 2), "12.000±0.000"),
    ],
)
def test_text(cell: Cell, text: str) -> None:
    assert cell.text(3) == text


# the best


def random_values(count: int, seeds: int, spread: float = 1.0) -> dict[str, list[float]]:
    generator = np.random.default_rng(count * 100 + seeds)
    common = generator.normal(size=seeds)
    return {f"m{i}": list(common + spread * i + generator.normal(size=seeds)) for i in range(count)}


@pytest.mark.parametrize("column", [NLL, ACCURACY])
@pytest.mark.parametrize("spread", [0.0, 0.7, 1.5, 4.0])
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_best_beats_each_rival_in_a_paired_t_test(
    column: Column, spread: float, seeds: int
) -> None:
    values = random_values(4, seeds, spread)
    sign = column.better.value
    top = max(values, key=lambda name: sign * statistics.mean(values[name]))
    p = [float(ttest_rel(values[top], values[m]).pvalue) for m in values if m != top]
    assert marked(cells_of(values, column), "best") == ([top] if max(p) < 0.05 else [])


def test_the_cases_above_are_of_both_kinds() -> None:
    found = {
        bool(marked(cells_of(random_values(4, seeds, spread)), "best"))
        for seeds in (2, 3, 8)
        for spread in (0.0, 0.7, 1.5, 4.0)
    }
    assert found == {True, False}


def test_one_rival_that_keeps_up_is_enough_against_the_best() -> None:
    best = [1.0, 1.2, 0.9, 1.1]
    far = [x + 5 + 0.1 * i for i, x in enumerate(best)]
    near = [x + d for x, d in zip(best, (0.3, -0.2, 0.1, 0.05), strict=True)]
    assert marked(cells_of({"a": best, "far": far}), "best") == ["a"]
    assert marked(cells_of({"a": best, "far": far, "near": near}), "best") == []


def test_pairing_by_seed_finds_what_the_spread_hides() -> None:
    hard = [1.0, 5.0, 3.0, 9.0]  # how hard each seed's split is
    values = {"a": hard, "b": [x + 0.10 + 0.01 * i for i, x in enumerate(hard)]}
    assert marked(cells_of(values), "best") == ["a"]
    swapped = rows_of({"a": hard}) + rows_of({"b": values["b"]}, seeds=(1, 0, 3, 2))
    _, cells = summarize(Table("t", swapped, [NLL]))
    assert not any(cell.best for row in cells.values() for cell in row)


def test_a_column_without_good_values_has_no_best() -> None:
    values = {"a": [1.0, 1.1, 1.2], "b": [9.0, 9.2, 9.3]}
    assert marked(cells_of(values, SECONDS), "best") == []
    assert marked(cells_of(values, SECONDS, baseline="a"), "differs") == []
    assert marked(cells_of(values, baseline="a"), "differs") == ["b"]


def test_a_single_line_is_not_best() -> None:
    assert marked(cells_of({"a": [1.0, 2.0, 3.0]}), "best") == []


def test_one_seed_marks_nothing() -> None:
    cells = cells_of({"a": [1.0], "b": [100.0], "c": [50.0]}, baseline="b")
    assert not marked(cells, "best")
    assert not marked(cells, "differs")


def test_equal_lines_mark_nothing() -> None:
    cells = cells_of({"a": [1.0, 2.0], "b": [1.0, 2.0]}, baseline="b")
    assert not marked(cells, "best")
    assert not marked(cells, "differs")


def test_the_same_difference_in_each_seed_has_no_spread_to_test_with() -> None:
    # One image more of 360, twice: by chance in one of eight such comparisons.
    values = {"a": [350 / 360, 347 / 360], "b": [349 / 360, 346 / 360]}
    cells = cells_of(values, ACCURACY, baseline="b")
    assert not marked(cells, "best")
    assert not marked(cells, "differs")


def test_missing_seeds_are_left_out_of_the_pairs() -> None:
    a, b = [1.0, 1.1, 0.9, 1.3, 1.2], [1.4, 1.45, NAN, 1.8]
    cells = cells_of({"a": a, "b": b}, baseline="a")
    p = float(ttest_rel([1.0, 1.1, 1.3], [1.4, 1.45, 1.8]).pvalue)
    assert p < 0.05
    assert marked(cells, "best") == ["a"]
    assert marked(cells, "differs") == ["b"]
    assert (cells["a"].seeds, cells["b"].seeds) == (5, 3)


def test_seeds_in_common_are_needed() -> None:
    rows = rows_of({"a": [1.0, 1.1]}, seeds=(0, 1)) + rows_of({"b": [9.0, 9.2]}, seeds=(2, 3))
    _, cells = summarize(Table("t", rows, [NLL], baseline="b"))
    assert not any(cell.best or cell.differs for row in cells.values() for cell in row)


def test_worse_on_the_common_seeds_is_not_best() -> None:
    # b has the lower mean only because it is missing where all are bad.
    values = {"a": [1.0, 1.1, 1.2, 50.0], "b": [2.0, 2.2, 2.1]}
    assert float(ttest_rel(values["a"][:3], values["b"]).pvalue) < 0.05
    assert marked(cells_of(values), "best") == []


# differences from the baseline


def test_holm_against_a_worked_example() -> None:
    # Differences of three seeds with mean m and deviations (-1, 0, 1): t = m √3, 2 degrees of
    # freedom, p = 1 - t / √(t² + 2). With m = √(2/3) (1 - p) / √(1 - (1 - p)²) the p-value is p.
    # Holm (1979), four tests at 5 %: 0.010 <= 0.05/4, 0.015 <= 0.05/3, 0.030 > 0.05/2: stop, though
    # 0.035 <= 0.05 alone. Bonferroni rejects the first only.
    wanted = {"p015": 0.015, "p035": 0.035, "p010": 0.010, "p030": 0.030}
    base = [10.0, 30.0, 20.0]
    values = {"base": base}
    for name, p in wanted.items():
        t_over_root = (1 - p) / math.sqrt(1 - (1 - p) ** 2)
        values[name] = [
            x + math.sqrt(2 / 3) * t_over_root + d for x, d in zip(base, (-1, 0, 1), strict=True)
        ]
        assert float(ttest_rel(values[name], base).pvalue) == pytest.approx(p)
    cells = cells_of(values, baseline="base")
    assert marked(cells, "differs") == ["p015", "p010"]
    alone = cells_of({"base": base, "p035": values["p035"]}, baseline="base")
    assert marked(alone, "differs") == ["p035"]


@pytest.mark.parametrize(
    ("p", "rejected"),
    [
        ((0.012, 0.016, 0.024, 0.049), (True, True, True, True)),
        ((0.012, 0.018, 0.024, 0.049), (True, False, False, False)),
        ((0.06, 0.06, 0.06, 0.06), (False, False, False, False)),
        ((0.012, 0.016, 0.024, 0.051), (True, True, True, False)),
    ],
)
def test_holm_all_and_none(p: tuple[float, ...], rejected: tuple[bool, ...]) -> None:
    values = {"base": [0.0, 0.0, 0.0]}
    for i, x in enumerate(p):
        middle = math.sqrt(2 / 3) * (1 - x) / math.sqrt(1 - (1 - x) ** 2)
        values[f"m{i}"] = [-middle - 1, -middle, -middle + 1]  # worse than the baseline counts too
    cells = cells_of(values, ACCURACY, baseline="base")
    assert tuple(cells[f"m{i}"].differs for i in range(4)) == rejected
    assert not cells["base"].differs


def test_a_baseline_that_is_not_there() -> None:
    assert not marked(cells_of({"a": [1.0, 1.1], "b": [9.0, 9.2]}, baseline="c"), "differs")


# conditions


def batch_sizes(sizes: Sequence[int]) -> list[Row]:
    """``a`` is best at the first size, ``b`` at the second; at the third nothing is told apart."""
    shifts = {"a": (0.0, 5.0, 0.0), "b": (5.0, 0.0, 0.0)}
    noise = {"a": (0.1, -0.2, 0.15, 0.0), "b": (-0.1, 0.1, 0.0, 0.05)}
    return [
        Row(method, seed, {"nll": shifts[method][i] + noise[method][seed]}, {"batch size": size})
        for i, size in enumerate(sizes)
        for method in ("a", "b")
        for seed in range(4)
    ]


def test_lines_are_compared_within_a_condition() -> None:
    table = Table(
        "t",
        batch_sizes((2, 8, 32)),
        [NLL],
        by=("batch size", "method"),
        within=("batch size",),
        baseline="a",
    )
    _, cells = summarize(table)
    assert list(cells) == [(2, "a"), (2, "b"), (8, "a"), (8, "b"), (32, "a"), (32, "b")]
    assert [line for line, row in cells.items() if row[0].best] == [(2, "a"), (8, "b")]
    assert [line for line, row in cells.items() if row[0].differs] == [(2, "b"), (8, "b")]


def test_without_within_all_lines_are_rivals() -> None:
    table = Table("t", batch_sizes((2, 8, 32)), [NLL], by=("batch size", "method"), baseline="a")
    _, cells = summarize(table)
    assert not any(row[0].best for row in cells.values())
    assert not any(row[0].differs for row in cells.values())  # the baseline has three lines


def test_labels_of_several_kinds_make_lines() -> None:
    rows = [
        Row("a", seed, {"nll": float(seed)}, {"n": n})
        for n in (32, 0.5, "all", math.inf)
        for seed in range(2)
    ]
    _, cells = summarize(Table("t", rows, [NLL], by=("n",)))
    assert list(cells) == [(32,), (0.5,), ("all",), (math.inf,)]
    assert all(row[0].seeds == 2 for row in cells.values())


def test_a_row_without_a_label_is_refused() -> None:
    rows = [Row("a", 0, {"nll": 1.0}, {"n": 1}), Row("mine", 0, {"nll": 1.0})]
    with pytest.raises(OptionError, match=r"'t'.*mine.*labels method, and not n"):
        summarize(Table("t", rows, [NLL], by=("method", "n")))


def test_within_a_label_that_makes_no_line_is_refused() -> None:
    rows = [Row("a", 0, {"nll": 1.0}, {"n": 1})]
    with pytest.raises(OptionError, match=r"within has n, lines are made by method"):
        summarize(Table("t", rows, [NLL], within=("n",)))


# false alarms


def share_of_tables_with_a_best(methods: int, seeds: int, number: int) -> float:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(number):
        values = generator.normal(size=(methods, seeds)) + generator.normal(size=seeds)
        found += bool(
            marked(cells_of({f"m{i}": list(row) for i, row in enumerate(values)}), "best")
        )
    return found / number


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "seeds"), [(2, 3), (4, 5)])
def test_false_alarms_of_best(methods: int, seeds: int) -> None:
    number = 500
    rate = share_of_tables_with_a_best(methods, seeds, number)
    # Four standard errors: a false alarm of this test in 30,000 where the rate is exactly 5 %.
    assert rate < 0.05 + 4 * math.sqrt(0.05 * 0.95 / number)
    if methods == 2:
        assert rate > 0.05 - 4 * math.sqrt(0.05 * 0.95 / number)
