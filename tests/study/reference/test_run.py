"""A tiny problem from end to end: run, table and files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch

from pyronorm.diagnostics import compare_draws, latent_vectors, pareto_k
from pyronorm.errors import OptionError
from pyronorm.latents import Draws
from pyronorm.study.reference import (
    Result,
    Settings,
    choose_posteriors,
    format_rows,
    run,
    table,
    write,
)

NAMES = ["mean-field", "auto-full", "mcbn", "point"]
TINY = Settings(
    width=2,
    seed=3,
    num_data=80,
    epochs=2,
    batch_size=40,
    chains=2,
    warmup=10,
    draws=20,
    steps=4,
    particles=2,
    bank_rows=21,
    num_samples=30,
    level=0.8,
    directions=6,
)


@pytest.fixture(scope="module")
def jobs() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(jobs: list[str]) -> Result:
    torch.set_num_threads(1)
    return run(TINY, choose_posteriors(NAMES), jobs.append)


@pytest.fixture(scope="module")
def written(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    (folder / "plots").mkdir()
    (folder / "plots" / "old.png").write_text("of an earlier result")
    write(result, folder, "pyronorm reference --seed 3")
    return folder


def test_rows(result: Result, jobs: list[str]) -> None:
    assert jobs == ["network", "nuts", *NAMES]
    rows = {row.name: row for row in result.rows}
    assert list(rows) == ["nuts", "nuts-half", *NAMES]
    assert set(result.idatas) == {"nuts", *NAMES}
    assert result.layers == {"1": 2, "4": 2}
    truth = result.idatas["nuts"]["posterior"]
    assert truth["shift"].shape == (2, 20, 4)
    for name in NAMES:
        posterior = result.idatas[name]["posterior"]
        draws = latent_vectors(
            Draws(*(torch.from_numpy(posterior[s].values[0].copy()) for s in ("shift", "scale")))
        )
        assert torch.equal(draws, rows[name].draws)
        assert draws.shape == (30, 8)
        again = compare_draws(draws, rows["nuts"].draws, 0.8, 6, 3)
        for part in ("mean_error", "sd_ratio", "coverage"):
            torch.testing.assert_close(getattr(rows[name].agreement, part), getattr(again, part))
        assert rows[name].agreement.sliced_wasserstein == again.sliced_wasserstein
        stats = result.idatas[name]["sample_stats"]
        if name in ("mcbn", "point"):
            assert math.isnan(rows[name].pareto_k)
            assert math.isnan(rows[name].elbo)
        else:
            ratios = (stats["lp"] - stats["log_q"]).values.astype(float)
            assert rows[name].elbo == pytest.approx(ratios.mean())
            assert rows[name].elbo_error == pytest.approx(ratios.std(ddof=1) / 30**0.5)
            assert rows[name].pareto_k == pareto_k(result.idatas[name]).k
        assert 0 < rows[name].nll < 10
    # Half of the chains by the other half.
    vectors = rows["nuts"].draws
    half = compare_draws(vectors[:20], vectors[20:], 0.8, 6, 3)
    torch.testing.assert_close(rows["nuts-half"].agreement.mean_error, half.mean_error)
    assert result.mixing.rhat.shape == (8,)
    expected = float(az.rhat(truth["shift"].values[:, :, 1]))
    assert float(result.mixing.rhat[1]) == pytest.approx(expected, rel=1e-4)
    covariance = torch.cov(vectors.T)
    limit = (covariance.inverse().diagonal() * covariance.diagonal()).rsqrt()
    torch.testing.assert_close(result.gaussian_limits["mean-field"], limit)
    # With as many columns as latents nothing is lost.
    whole = torch.ones(8, dtype=torch.float64)
    torch.testing.assert_close(result.gaussian_limits["low-rank-20"], whole, rtol=1e-2, atol=0)


def test_table(result: Result) -> None:
    summary = table(result)
    rows = {row.name: row for row in result.rows}
    assert list(summary.index) == list(rows)
    found = rows["auto-full"].agreement
    line = summary.loc["auto-full"]
    assert line["mean_error"] == pytest.approx(found.mean_error.square().mean().sqrt().item())
    assert line["shift_sd"] == pytest.approx(np.median(found.sd_ratio[:4].numpy()))
    assert line["log_scale_sd_high"] == pytest.approx(found.sd_ratio[4:].max().item())
    assert line["coverage_low"] == pytest.approx(found.coverage.min().item())
    assert summary["elbo"].max() == 0
    assert summary.loc["nuts"].isna()[["mean_error", "shift_sd", "coverage", "elbo"]].all()
    headings, cells = format_rows(summary)
    assert {len(headings)} == {len(row) for row in cells}
    assert cells[0][:3] == ["nuts", "-", "-"]
    assert cells[-1][0] == "point"
    assert cells[-1][2] == "0.00 [0.00, 0.00]"
    assert "nan" not in str(cells)


def test_files(result: Result, written: Path) -> None:
    record = json.loads((written / "results.json").read_text(encoding="utf-8"))
    assert record["command"] == "pyronorm reference --seed 3"
    assert record["settings"]["prior"] == "Standard(shift_std=0.5, log_scale_std=0.5)"
    assert record["settings"]["draws"] == 20
    assert record["posteriors"]["mcbn"]["elbo"] is None
    assert len(record["posteriors"]["mean-field"]["sd_ratio"]) == 8
    assert len(record["chains"]["ess_bulk"]) == 8
    assert {"torch", "arviz", "threads"} <= set(record["environment"])
    read = pd.read_csv(written / "table.csv", index_col="posterior")
    pd.testing.assert_frame_equal(read, table(result))
    assert {p.stem for p in (written / "plots").iterdir()} == {
        "correlations",
        "marginals",
        "spread",
    }
    assert all(p.stat().st_size > 10_000 for p in (written / "plots").iterdir())
    files = {p.stem: p for p in (written / "arviz").iterdir()}
    assert set(files) == {"nuts", *NAMES}
    idata = az.from_netcdf(str(files["mean-field"]))
    assert idata["log_likelihood"]["y"].shape == (1, 30, 80)
    assert idata["posterior"].attrs["method"] == "MeanField"


def test_report(result: Result, written: Path) -> None:
    report = (written / "report.md").read_text(encoding="utf-8")
    headings, rows = format_rows(table(result))
    lines = report.splitlines()
    top = lines.index("| " + " | ".join(headings) + " |")
    for i, row in enumerate(rows):
        assert lines[top + 2 + i] == "| " + " | ".join(row) + " |"
    for words in ("8 latents", "seed 3", "2 chains of 20 draws after 10", "4 steps", "80 training"):
        assert words in report
    for link in ("marginals", "spread", "correlations"):
        assert f"](plots/{link}.png)" in report


def test_a_run_can_be_repeated_and_leaves_the_threads_alone(result: Result) -> None:
    torch.set_num_threads(2)
    try:
        again = run(TINY, choose_posteriors("mean-field"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    rows = {row.name: row for row in result.rows}
    for row in again.rows:
        torch.testing.assert_close(row.draws, rows[row.name].draws)
        assert row.nll == pytest.approx(rows[row.name].nll, rel=1e-5)


def test_a_run_that_stopped_goes_on(result: Result, tmp_path: Path) -> None:
    """Stopped at each job in turn: what was judged is not judged again, and the rows are the same."""

    class StopError(Exception):
        pass

    def stopping(name: str) -> Callable[[str], None]:
        def report(job: str) -> None:
            if job == name:
                raise StopError

        return report

    candidates = choose_posteriors(NAMES)
    for name in ("auto-full", "point"):
        with pytest.raises(StopError):
            run(TINY, candidates, stopping(name), tmp_path)
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "kept" / "jobs").iterdir()}
    assert {f.name for f in kept if f.suffix == ".json"} == {
        f"{name}-seed3.json" for name in ("nuts", "nuts-half", *NAMES[:3])
    }
    resumed = run(TINY, candidates, folder=str(tmp_path))
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    times = ["seconds", "cpu_seconds"]
    pd.testing.assert_frame_equal(
        table(resumed).drop(columns=times), table(result).drop(columns=times), check_exact=True
    )
    assert list(resumed.idatas) == list(result.idatas)
    for name, idata in result.idatas.items():
        mine = resumed.idatas[name]["posterior"]["shift"].values
        np.testing.assert_array_equal(mine, idata["posterior"]["shift"].values)
    for a, b in zip(resumed.rows, result.rows, strict=True):
        assert torch.equal(a.draws, b.draws)
    write(resumed, str(tmp_path), "again")
    with pytest.raises(OptionError, match="steps is 4 there, 5 here"):
        run(replace(TINY, steps=5), candidates, folder=tmp_path)
