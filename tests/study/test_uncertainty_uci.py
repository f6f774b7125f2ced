"""The study on UCI tables, on a small one written here."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyronorm.datasets.files import PublishedFile
from pyronorm.datasets.uci import UCI
from pyronorm.errors import OptionError
from pyronorm.study import (
    Folder,
    Job,
    Place,
    Results,
    Row,
    make_study,
    restore_study,
    run_study,
    summarize,
    write_report,
)
from pyronorm.study.uci_networks import (
    KINDS,
    UciNetworks,
    UncertaintyUciSettings,
    _FullBatches,
)
from pyronorm.study.uncertainty_uci import UncertaintyUci

SETTINGS = UncertaintyUciSettings(
    tables=("yacht",),
    seeds=(3, 5),
    test_share=0.25,
    validation_share=0.3,
    steps=4,
    batch_size=7,
    batch_sizes=(4, 6, 100),
    dropouts=(0.1, 0.3),
    num_samples=30,  # more than predict_dropout gets at once
)

METHODS = {
    "batch": ["BN", "MCBN", "stochastic BN", "BN, fixed law"],
    "dropout": ["dropout off", "MC dropout"],
    "plain": ["plain", "jackknife"],
    "weight": ["weight, no noise"],
    "weight fixed": ["weight, fixed noise"],
    "weight mean field": ["weight, mean field"],
    "weight learned n": ["weight, learned n"],
}


def write_uci(root, monkeypatch, name="yacht", rows=57):
    source = UCI[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, len(source.feature_names)))
    y = 40 + 5 * x[:, 0] * x[:, 1] + rng.normal(size=rows)
    lines = (" ".join(f"{v:.5f}" for v in (*a, b)) + "\n" for a, b in zip(x, y, strict=True))
    text = "".join(lines)
    folder = root / "uci" / name
    folder.mkdir(parents=True)
    (folder / source.file.name).write_text(text)
    (folder / "index_features.txt").write_text("".join(f"{k}\n" for k in range(x.shape[1])))
    (folder / "index_target.txt").write_text(f"{x.shape[1]}\n")
    file = PublishedFile(source.file.name, hashlib.md5(text.encode()).hexdigest())
    monkeypatch.setitem(UCI, name, replace(source, file=file, rows=rows))
    return Place(root, "cpu")


def test_every_kind_of_network_has_its_job():
    study = UncertaintyUci("uncertainty-uci", SETTINGS)
    assert set(METHODS) == set(KINDS)
    assert {str(job) for job in study.jobs()} == {
        f"yacht {kind}, seed {seed}" for kind in KINDS for seed in (3, 5)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_judges_its_methods(kind, tmp_path, monkeypatch):
    place = write_uci(tmp_path, monkeypatch)
    study = UncertaintyUci("uncertainty-uci", SETTINGS)
    rows = study.run(Job(f"yacht {kind}", 5), place).rows
    assert [row.method for row in rows] == METHODS[kind]
    for row in rows:
        assert (row.seed, row.condition) == (5, {"data": "yacht"})
        assert all(np.isfinite(value) for value in row.values.values())
        assert 0 < row.values["rmse"] < 20  # in units of the target, whose deviation is about 5
        assert 0 <= row.values["coverage"] <= 1
        assert row.values.get("chosen") != 100  # a batch of more than half of the data
        if row.method == "jackknife":
            assert set(row.values) == {"rmse", "coverage", "width"}
        elif row.method in ("BN", "dropout off", "plain", "weight, no noise"):
            assert row.values["pll_percent"] == pytest.approx(0, abs=1e-9)
            assert row.values["crps_percent"] == pytest.approx(0, abs=1e-9)
        else:
            assert row.values["pll_percent"] != 0


def test_a_job_repeats_itself(tmp_path, monkeypatch):
    place = write_uci(tmp_path, monkeypatch)
    study = UncertaintyUci("uncertainty-uci", SETTINGS)
    first, second = (study.run(Job("yacht weight learned n", 3), place).rows for _ in range(2))
    assert first[0].values == second[0].values


def split_of(place, **changes):
    data = UCI["yacht"].read(place.data_root).split(0)
    data, validation = data.split_off(9)
    return UciNetworks(replace(SETTINGS, **changes), data, validation, 0, "cpu")


def test_batches_above_half_of_the_data_are_left_out(tmp_path, monkeypatch):
    place = write_uci(tmp_path, monkeypatch)  # 57 rows: 6 to test, 9 for validation
    assert split_of(place, batch_sizes=(4, 21, 22))._sizes() == [4, 21]
    assert split_of(place, batch_sizes=(22, 30))._sizes() == [21]


def test_batches_are_full_and_of_different_rows():
    x, y = torch.arange(22.0).view(11, 2), torch.arange(11.0)[:, None]
    batches = _FullBatches(x, y, 4, seed=1)
    passes = [list(batches) for _ in range(2)]
    for batch in passes:
        assert len(batch) == len(batches) == 2
        rows = torch.cat([y for _, y in batch]).flatten().long()
        assert len(rows.unique()) == len(rows) == 8
        assert torch.equal(torch.cat([x for x, _ in batch]), x[rows])
    assert not torch.equal(passes[0][0][1], passes[1][0][1])
    assert torch.equal(next(iter(_FullBatches(x, y, 4, seed=1)))[1], passes[0][0][1])


def test_large_networks_have_no_jackknife(tmp_path, monkeypatch):
    name = "protein-tertiary-structure"  # 100 units
    place = write_uci(tmp_path, monkeypatch, name)
    study = UncertaintyUci("uncertainty-uci", replace(SETTINGS, tables=(name,)))
    rows = study.run(Job(f"{name} plain", 3), place).rows
    assert [row.method for row in rows] == ["plain"]


def test_the_best_on_validation_data_is_chosen(tmp_path, monkeypatch):
    place = write_uci(tmp_path, monkeypatch)
    networks = split_of(place)
    data, validation = networks.data, networks.validation

    def shifted(shift):
        # draws that are right on average for a shift of 0
        return lambda x: (
            (validation.y if len(x) == 9 else data.test.y).double()[None].repeat(2, 1) + shift
        )

    found = [(shifted(s), s) for s in (0.4, -0.1, 0.3)]
    assert networks._best(found)[1] == -0.1


def rows_of(method, seed, **values):
    return Row(
        method, seed, {"rmse": 1.0, "coverage": 0.9, "width": 2.0, **values}, {"data": "yacht"}
    )


def test_sections_compare_with_the_constant_variance():
    scores = [{"pll": -1.0, "crps": 0.5, "pll_percent": p, "crps_percent": 2 * p} for p in (5, 6)]
    rows = [
        row
        for seed, values in zip((3, 5), scores, strict=True)
        for row in (
            rows_of("BN", seed, **{**values, "pll_percent": 0.0, "crps_percent": 0.0}),
            rows_of("MCBN", seed, chosen=32.0, **values),
            rows_of("jackknife", seed),
        )
    ]
    study = UncertaintyUci("uncertainty-uci", SETTINGS)
    results = Results(rows, {}, {}, {}, {})
    worth, predictions, intervals = study.sections(results)
    cells = summarize(worth.tables[0])[1]
    assert list(cells) == [("yacht", "constant variance"), ("yacht", "MCBN")]
    zero, mcbn = cells.values()
    assert [cell.mean for cell in zero] == [0.0, 0.0, 0.0]
    assert [cell.mean for cell in mcbn][:2] == [5.5, 11.0]
    assert "yacht: 45.58 and -56.39; -41.54 and 21.42" in worth.text
    assert list(summarize(predictions.tables[0])[1]) == [("yacht", "BN"), ("yacht", "MCBN")]
    assert len(summarize(intervals.tables[0])[1]) == 3
    assert list(summarize(predictions.tables[1])[1]) == [("yacht", "MCBN")]
    figure = plt.figure(layout="constrained")
    worth.plots[0].draw(figure)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["yacht"]
    assert right.get_xlabel() == "CRPS, %"
    plt.close(figure)


def test_sections_of_no_results():
    study = UncertaintyUci("uncertainty-uci", SETTINGS)
    nothing = Results([], {}, {}, {}, {})
    sections = study.sections(nothing)
    assert "4 steps" in sections[0].text
    assert not sections[0].plots
    full = make_study("uncertainty-uci").sections(nothing)[0]
    assert all(f"- {table}: " in full.text for table in UCI)


@pytest.mark.slow
def test_from_files_to_a_report(tmp_path, monkeypatch):
    place = write_uci(tmp_path / "data", monkeypatch)
    study = UncertaintyUci("uncertainty-uci", SETTINGS)
    results = run_study(study, tmp_path / "out", place=place, progress=False)
    assert not results.failures
    assert len(results.rows) == 2 * sum(map(len, METHODS.values()))
    page = write_report(study, tmp_path / "out").read_text()
    assert "stochastic BN" in page
    assert "among 0.1, 0.3" in page
    assert restore_study(Folder(tmp_path / "out").record) == study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": ("yacht", "boats")}, "tables must be different ones of bostonHousing"),
        ({"tables": ("yacht", "yacht")}, "tables must be different"),
        ({"tables": ()}, "tables must be different"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"test_share": 1.0}, "test_share must be between 0 and 1"),
        ({"validation_share": 0.0}, "validation_share must be between 0 and 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"batch_sizes": ()}, "batch_sizes must have at least one value"),
        ({"batch_sizes": (32, 1)}, "batch_sizes must be at least 2"),
        ({"dropouts": ()}, "dropouts must have at least one value"),
        ({"dropouts": (0.1, 0.0)}, "dropouts must be between 0 and 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"damping": float("inf")}, "damping must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"prior": 1.0}, "prior must be above 1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(OptionError, match=message):
        replace(SETTINGS, **change)


def test_the_catalog_has_both_sizes():
    quick = make_study("uncertainty-uci", quick=True)
    full = make_study("uncertainty-uci")
    assert len(quick.settings.tables) == 4
    assert set(full.settings.tables) == set(UCI)
    assert len(full.settings.seeds) == 20
