"""The report on batch sizes, from rows made up."""

from __future__ import annotations

import pytest

from pyronorm.study import Results, Row, Section
from pyronorm.study.batch_size import BatchSize, BatchSizeSettings
from pyronorm.study.batch_size_report import BN, GROUP, GROUPS, MCBN, NOISE, PLAIN, SIZE

METRICS = ("accuracy", "nll", "ece", "calibrated_ece", "brier", "calibrated_brier", "aurc")
BATCH = {"n_eff": 90.0, "n_eff_scale": 20.0, "disturbance": 0.2, "batch_nll": 1.1, "gap": -0.2}
SEEDS = range(5)


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    """Noise helps weight normalization with batches of 4, and does nothing with 64."""
    rows = []
    for seed in SEEDS:
        spread = 0.01 * ((3 * seed) % 5 - 2)
        for n, gain in ((4, 0.2), (64, 0.0)):
            nll = {BN: 1.0, MCBN: 1.0 + spread / 10, PLAIN: 0.8 + spread}
            nll[NOISE] = nll[PLAIN] - gain + 0.001 * ((2 * seed) % 5 - 2)
            for method, value in nll.items():
                values = {**dict.fromkeys(METRICS, 0.5), "calibrated_nll": value}
                values |= BATCH if method == BN else {}
                rows.append(Row(method, seed, values, {SIZE: n}))
        values = {**dict.fromkeys(METRICS, 0.5), "calibrated_nll": 0.9, "constraints": 0.1}
        rows.append(Row(GROUP, seed, values, {GROUPS: 2}))
    study = BatchSize("batch-size", BatchSizeSettings(seeds=tuple(SEEDS)))
    return list(study.sections(Results(rows, {}, {}, {}, {})))


def test_each_batch_size_has_two_answers(sections: list[Section]) -> None:
    lines = sections[0].answer.splitlines()
    assert [line[: line.index(".")] for line in lines] == [
        *("- Batches of 4", "- Batches of 4", "- Batches of 64", "- Batches of 64")
    ]
    assert f"`{NOISE}` is better than `{PLAIN}`" in lines[1]
    assert "Equivalent" not in lines[1]
    assert f"No method differs from `{PLAIN}`" in lines[3]
    assert f"Equivalent, within 0.010 of `{PLAIN}`" in lines[3]
    assert f"Equivalent, within 0.010 of `{BN}` (two one-sided tests, 5 %): `{MCBN}`" in lines[0]


def test_tables_and_plots(sections: list[Section]) -> None:
    from matplotlib.figure import Figure

    assert [len(section.tables) for section in sections] == [2, 1]
    assert {row.method for row in sections[0].tables[0].rows} == {BN}
    assert {row.method for row in sections[0].tables[1].rows} == {BN, MCBN, PLAIN, NOISE}
    for section in sections:
        for plot in section.plots:
            figure = Figure()
            plot.draw(figure)
            assert all(axes.lines for axes in figure.axes)
    assert "\n\n" in sections[0].text
