"""Table, files and report of made-up runs, whose means and deviations are worked out by hand."""

from __future__ import annotations

import json
import math
import statistics
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread
from torch import nn

import pyronorm as pn
from pyronorm import plots
from pyronorm.study import Result, Run, Settings, choose_methods, format_rows, table, write

COMMAND = "pyronorm compare --seeds 3 --methods weight/fixed,batch"
SEEDS = (2, 0, 7)
NAMES = ("weight/fixed", "batch/point", "batch/mcbn")  # not the order in METHODS
# accuracy, nll, ece, brier, seconds of training, seconds of a prediction; a row per seed
NUMBERS: Mapping[str, list[tuple[float, ...]]] = {
    "weight/fixed": [
        (0.95, 0.2, 0.03, 0.08, 3.0, 0.010),
        (0.91, 0.3, 0.05, 0.14, 8.0, 0.014),
        (0.93, 0.1, 0.01, 0.02, 5.0, 0.012),
    ],
    "batch/point": [
        (0.99, 0.06, 0.02, 0.03, 2.0, 0.004),
        (0.96, 0.09, 0.04, 0.05, 4.0, 0.005),
        (0.98, 0.03, 0.03, 0.01, 1.0, 0.003),
    ],
    "batch/mcbn": [
        (0.97, 0.07, 0.015, 0.035, 2.5, 0.006),
        (0.98, 0.08, 0.025, 0.045, 4.4, 0.008),
        (0.96, 0.12, 0.045, 0.065, 1.5, 0.010),
    ],
}
COLUMNS = ("accuracy", "nll", "ece", "brier", "relative_train_time", "predict_ms")


def made_up_runs(names: tuple[str, ...] = NAMES, seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """As compare gives them: seed by seed."""
    return [
        Run(
            name,
            seed,
            dict(zip(COLUMNS[:4], NUMBERS[name][i], strict=False)),
            *NUMBERS[name][i][4:],
        )
        for i, seed in enumerate(seeds)
        for name in names
    ]


def made_up_idatas(names: tuple[str, ...]) -> dict[str, Any]:
    torch.manual_seed(0)
    network = pn.convert(
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    )
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    pn.estimate_population_statistics(network, x)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=100)
    bank = pn.collect_bank(model, x, 6, 8)
    guides = {
        "weight/fixed": pn.guides.FixedNoise(model, 12),
        "batch/point": pn.guides.Point(model),
        "batch/mcbn": pn.guides.BatchNoise(model, bank),
    }
    return {n: pn.to_arviz(model, guides[n], (x, y), num_samples=4, seed=11) for n in names}


def make_result(names: tuple[str, ...] = NAMES, seeds: tuple[int, ...] = SEEDS) -> Result:
    torch.manual_seed(1)
    predictions = {n: (torch.randn(60, 3).softmax(-1), torch.randint(0, 3, (60,))) for n in names}
    settings = Settings(seeds=seeds, epochs=9, batch_size=48, lr=0.0125, num_samples=21)
    return Result(
        settings,
        tuple(choose_methods(names)),
        tuple(made_up_runs(names, seeds)),
        predictions,
        made_up_idatas(names),
    )


@pytest.fixture(scope="module")
def result() -> Result:
    return make_result()


@pytest.fixture(scope="module")
def written(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "deeper" / "run"
    write(result, folder, COMMAND)
    return folder


def expected_table(names: tuple[str, ...] = NAMES) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and sd by method and column, with the standard library."""
    columns: dict[str, dict[str, tuple[float, float]]] = {}
    for name in names:
        values = {column: [row[i] for row in NUMBERS[name]] for i, column in enumerate(COLUMNS[:4])}
        values["relative_train_time"] = [
            row[4] / base[4]
            for row, base in zip(NUMBERS[name], NUMBERS["batch/point"], strict=True)
        ]
        values["predict_ms"] = [1000 * row[5] for row in NUMBERS[name]]
        columns[name] = {k: (statistics.mean(v), statistics.stdev(v)) for k, v in values.items()}
    return columns


# table


def test_table_is_mean_and_unbiased_sd(result: Result) -> None:
    summary = table(result)
    assert list(summary.index) == list(NAMES)
    assert list(summary.columns) == [f"{c}_{what}" for c in COLUMNS for what in ("mean", "sd")]
    for name, columns in expected_table().items():
        for column, (mean, sd) in columns.items():
            assert summary.loc[name, f"{column}_mean"] == pytest.approx(mean)
            assert summary.loc[name, f"{column}_sd"] == pytest.approx(sd)


def test_table_by_hand(result: Result) -> None:
    row = table(result).loc["weight/fixed"]
    assert row["accuracy_mean"] == pytest.approx(0.93)
    assert row["accuracy_sd"] == pytest.approx(0.02)
    # 3/2, 8/4 and 5/1 of batch/point with the same seed
    assert row["relative_train_time_mean"] == pytest.approx((1.5 + 2 + 5) / 3)
    assert row["predict_ms_mean"] == pytest.approx(12)
    assert row["predict_ms_sd"] == pytest.approx(2)


def test_table_is_pandas_of_the_runs(result: Result) -> None:
    frame = pd.DataFrame([{"method": r.method, "seed": r.seed, **r.metrics} for r in result.runs])
    mean = frame.pivot(index="method", columns="seed", values="brier")
    summary = table(result)
    np.testing.assert_allclose(summary["brier_mean"], mean.loc[list(NAMES)].mean(axis=1))
    np.testing.assert_allclose(summary["brier_sd"], mean.loc[list(NAMES)].std(axis=1, ddof=1))


def test_rows_are_in_the_order_of_the_methods(result: Result) -> None:
    backwards = replace(result, methods=result.methods[::-1])
    assert list(table(backwards).index) == list(NAMES[::-1])
    pd.testing.assert_frame_equal(table(backwards).iloc[::-1], table(result))


def test_no_relative_time_without_the_baseline() -> None:
    names = ("weight/fixed", "batch/mcbn")
    result = Result(Settings(), tuple(choose_methods(names)), tuple(made_up_runs(names)), {}, {})
    kept = [c for c in COLUMNS if c != "relative_train_time"]
    assert list(table(result).columns) == [f"{c}_{what}" for c in kept for what in ("mean", "sd")]
    headings, rows = format_rows(table(result))
    assert headings == ["method", "accuracy", "NLL", "ECE", "Brier", "ms/draw"]
    assert [len(row) for row in rows] == [6, 6]


def test_one_seed_has_no_sd() -> None:
    result = Result(
        Settings(seeds=(2,)), tuple(choose_methods(NAMES)), tuple(made_up_runs(seeds=(2,))), {}, {}
    )
    summary = table(result)
    assert summary[[f"{c}_sd" for c in COLUMNS]].isna().all(axis=None)
    assert summary.loc["batch/mcbn", "relative_train_time_mean"] == 1.25
    _, rows = format_rows(summary)
    assert rows[0] == ["weight/fixed", "0.950", "0.200", "0.030", "0.080", "1.50", "10.0"]


# text


def test_format_rows(result: Result) -> None:
    headings, rows = format_rows(table(result))
    assert headings == ["method", "accuracy", "NLL", "ECE", "Brier", "train time", "ms/draw"]
    assert [row[0] for row in rows] == list(NAMES)
    for row, columns in zip(rows, expected_table().values(), strict=True):
        for cell, column, digits in zip(row[1:], COLUMNS, (3, 3, 3, 3, 2, 1), strict=True):
            mean, sd = columns[column]
            assert cell == f"{mean:.{digits}f}±{sd:.{digits}f}"


def test_format_rows_by_hand(result: Result) -> None:
    _, rows = format_rows(table(result))
    assert rows[1] == [
        "batch/point",
        "0.977±0.015",
        "0.060±0.030",
        "0.030±0.010",
        "0.030±0.020",
        "1.00±0.00",
        "4.0±1.0",
    ]


# files


def test_the_files(written: Path) -> None:
    found = sorted(str(p.relative_to(written)) for p in written.rglob("*") if p.is_file())
    assert found == [
        "arviz/batch-mcbn.nc",
        "arviz/batch-point.nc",
        "arviz/weight-fixed.nc",
        "plots/nll.png",
        "plots/posterior-scale.png",
        "plots/reliability.png",
        "report.md",
        "results.json",
        "table.csv",
    ]


def test_csv_is_the_table(written: Path, result: Result) -> None:
    read = pd.read_csv(written / "table.csv", index_col="method")
    pd.testing.assert_frame_equal(read, table(result), check_exact=False, rtol=1e-12)


def test_json_has_runs_settings_and_environment(written: Path, result: Result) -> None:
    read = json.loads((written / "results.json").read_text(encoding="utf-8"))
    assert set(read) == {"command", "settings", "environment", "runs"}
    assert read["command"] == COMMAND
    assert read["settings"] == {
        "data": "digits",
        "seeds": [2, 0, 7],
        "epochs": 9,
        "batch_size": 48,
        "lr": 0.0125,
        "num_samples": 21,
        "bank_rows": 128,
        "arviz_samples": 200,
        "device": "auto",
    }
    assert [Run(**run) for run in read["runs"]] == list(result.runs)
    for name in ("pyronorm", "torch", "pyro-ppl", "arviz", "numpy"):
        assert read["environment"][name] == version(name)
    assert read["environment"]["threads"] == str(torch.get_num_threads())


@pytest.mark.parametrize("name", NAMES)
def test_arviz_files_read_back(written: Path, result: Result, name: str) -> None:
    import arviz

    read = arviz.from_netcdf(str(written / "arviz" / f"{name.replace('/', '-')}.nc"))
    kept = result.idatas[name]
    for group in (
        "posterior",
        "prior",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
        "constant_data",
        "sample_stats",
    ):
        assert set(read[group].data_vars) == set(kept[group].data_vars)
        for variable in kept[group].data_vars:
            mine, theirs = kept[group][variable], read[group][variable]
            assert mine.dims == theirs.dims
            np.testing.assert_array_equal(mine.values, theirs.values)
    for key, value in kept["posterior"].attrs.items():
        assert read["posterior"].attrs[key] == value
    assert read["posterior"].attrs["seed"] == 11
    assert read["posterior"].attrs["inference_library"] == "pyronorm"
    assert pn.channels(read, layer="1") == {"channel": [f"1[{i}]" for i in range(5)]}


@pytest.mark.parametrize("name", ["nll", "reliability", "posterior-scale"])
def test_plots_are_pictures(written: Path, name: str) -> None:
    path = written / "plots" / f"{name}.png"
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1050, 675)  # 7 x 4.5 inches at 150 dpi
    picture = imread(path)[..., :3]
    background = (picture == 1).all(-1)
    assert 0.5 < background.mean() < 0.99
    colours = np.unique(picture[~background].reshape(-1, 3), axis=0)
    assert np.ptp(colours, axis=1).max() > 0.3  # not only greys


def test_what_the_plots_show(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show(result, tmp_path, monkeypatch)
    assert shown["plot_metric"] == {name: [row[1] for row in NUMBERS[name]] for name in NAMES}
    assert list(shown["plot_posterior_scale"]) == ["weight/fixed", "batch/mcbn"]  # no points
    for name, idata in shown["plot_posterior_scale"].items():
        assert idata is result.idatas[name]
    # of these methods only two are among those the report compares
    assert list(shown["plot_reliability"]) == ["batch/point", "batch/mcbn"]
    for name, value in shown["plot_reliability"].items():
        assert value is result.predictions[name]


def test_reliability_of_other_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = show(make_result(("weight/fixed",)), tmp_path, monkeypatch)
    assert list(shown["plot_reliability"]) == ["weight/fixed"]


def show(result: Result, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Mapping[str, Any]]:
    """Write, and note what each plotting function is given."""
    shown: dict[str, Mapping[str, Any]] = {}

    def spied(name: str, draw: Callable[..., Axes]) -> Callable[..., Axes]:
        def spy(values: Mapping[str, Any], *args: str, ax: Axes) -> Axes:
            shown[name] = values
            return draw(values, *args, ax=ax)

        return spy

    for name in plots.__all__:
        patch.setattr(plots, name, spied(name, getattr(plots, name)))
    write(result, folder, COMMAND)
    return shown


def test_points_alone_have_no_posterior_plot(tmp_path: Path) -> None:
    write(make_result(("batch/point",)), tmp_path, COMMAND)
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"nll.png", "reliability.png"}
    assert "posterior-scale" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_write_leaves_other_figures_alone(result: Result, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    write(result, tmp_path, COMMAND)
    assert plt.get_fignums() == before


def test_writing_twice_overwrites(result: Result, tmp_path: Path) -> None:
    write(result, tmp_path, "first")
    write(result, tmp_path, "second")
    assert json.loads((tmp_path / "results.json").read_text())["command"] == "second"
    assert "`second`" in (tmp_path / "report.md").read_text(encoding="utf-8")


# report


@pytest.fixture
def report(written: Path) -> str:
    return (written / "report.md").read_text(encoding="utf-8")


def test_report_has_the_table(report: str, result: Result) -> None:
    headings, rows = format_rows(table(result))
    lines = report.splitlines()
    top = lines.index("| " + " | ".join(headings) + " |")
    assert lines[top + 1].count("---") == len(headings)
    for i, row in enumerate(rows):
        assert lines[top + 2 + i] == "| " + " | ".join(row) + " |"


def test_report_says_how(report: str) -> None:
    assert report.startswith("# Comparison on digits\n")
    assert f"`{COMMAND}`" in report
    for words in ("3 seeds (2, 0, 7)", "9 epochs", "batch size 48", "0.0125", "21 draws"):
        assert words in report
    for name in NAMES:
        (method,) = choose_methods([name])
        assert f"- `{name}`: {method.description}" in report.splitlines()
    for name in ("pyronorm", "torch", "pyro-ppl", "arviz", "numpy"):
        assert f"{name} {version(name)}" in report


def test_report_links_to_the_plots(report: str, written: Path) -> None:
    links = [line.split("](")[1].rstrip(")") for line in report.splitlines() if line[:2] == "!["]
    assert sorted(links) == [f"plots/{n}.png" for n in ("nll", "posterior-scale", "reliability")]
    assert all((written / link).is_file() for link in links)


def test_files_of_an_earlier_result_are_gone(result: Result, tmp_path: Path) -> None:
    write(result, tmp_path, COMMAND)
    write(make_result(("batch/point",)), tmp_path, COMMAND)
    assert [p.name for p in (tmp_path / "arviz").iterdir()] == ["batch-point.nc"]
    assert not (tmp_path / "plots" / "posterior-scale.png").exists()


def test_report_explains_only_columns_that_are_there(tmp_path: Path) -> None:
    write(make_result(("weight/fixed",)), tmp_path, COMMAND)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "train time" not in report
    assert "Training time" not in report


def test_report_of_one_seed(tmp_path: Path) -> None:
    write(make_result(("batch/point",), (2,)), tmp_path, COMMAND)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "1 seeds" not in report
    assert "Mean ± standard deviation" not in report


def test_results_are_json_even_when_a_metric_is_not_a_number(tmp_path: Path) -> None:
    result = make_result(("batch/point",))
    first, *others = result.runs
    runs = (replace(first, metrics={**first.metrics, "nll": math.nan}), *others)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    write(replace(result, runs=runs), tmp_path, COMMAND)
    json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
