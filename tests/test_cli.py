"""The command line, mostly in process; once as a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from pyronorm import cli, study
from pyronorm.study import METHODS, Result, Run, Settings, choose_methods, format_rows

NUMBERS = {"accuracy": 0.9, "nll": 0.3, "ece": 0.05, "brier": 0.1}


@dataclass
class Ended:
    status: int
    out: str
    err: str


Run80 = Callable[..., Ended]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run80:
    """Run ``pyronorm`` in this process, in an empty folder and a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pyronorm", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return call


@dataclass
class Comparison:
    """Stands in for the comparison, and notes what it was asked for."""

    nll: float = 0.3
    spread: float = 0.1
    seconds: float = 2.0
    methods: tuple[str, ...] | None = None
    settings: Settings | None = None

    def __call__(self, methods, settings, report) -> Result:
        self.methods, self.settings = tuple(m.name for m in methods), settings
        runs = []
        for seed in settings.seeds:
            for method in methods:
                report(f"{method.name}, seed {seed}")
                nll = self.nll + self.spread * seed
                seconds = self.seconds * (1 + seed) if method.name != "batch/point" else 1.0
                runs.append(
                    Run(method.name, seed, {**NUMBERS, "nll": nll}, seconds, 0.001 * seconds)
                )
        p, y = torch.rand(30, 3).softmax(-1), torch.arange(30) % 3
        return Result(settings, tuple(methods), tuple(runs), {m.name: (p, y) for m in methods}, {})


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Comparison:
    stand_in = Comparison()
    monkeypatch.setattr(study, "compare", stand_in)
    return stand_in


def one_line(text: str) -> str:
    """Undo the wrapping at 80 columns."""
    return " ".join(text.split())


def table_lines(out: str, methods: list[str]) -> dict[str, list[str]]:
    """The cells of each method's line."""
    lines = [line.split() for line in out.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells and cells[0] in methods}


# a real comparison


def test_a_comparison(run: Run80, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "run"
    ended = run(
        *("compare", "--seeds", 2, "--epochs", 1, "--methods", "weight/fixed,batch/point"),
        *("--batch-size", 90, "--num-samples", 5, "--device", "cpu", "--output", output),
    )
    assert ended.status == 0
    assert ended.err == ""
    record = json.loads((output / "results.json").read_text(encoding="utf-8"))
    settings = record["settings"]
    assert settings["seeds"] == [0, 1]
    assert settings["data"] == "digits"
    assert settings["epochs"] == 1
    assert settings["batch_size"] == 90
    assert settings["num_samples"] == 5
    assert settings["device"] == "cpu"
    names = ["weight/fixed", "batch/point"]
    assert [(r["method"], r["seed"]) for r in record["runs"]] == [
        (name, seed) for seed in (0, 1) for name in names
    ]
    assert record["command"].startswith("pyronorm compare --seeds 2 --epochs 1 --methods")
    summary = pd.read_csv(output / "table.csv", index_col="method")
    headings, rows = format_rows(summary)
    assert table_lines(ended.out, names) == {row[0]: row[1:] for row in rows}
    assert " ".join(headings) in one_line(ended.out)
    assert "digits, 1 epochs, 2 seeds, mean±sd" in ended.out
    assert str(output) in ended.out.replace("\n", "")
    assert "4/4" in ended.out
    files = {p.name for p in output.rglob("*") if p.is_file()}
    assert {"report.md", "weight-fixed.nc", "batch-point.nc", "nll.png"} <= files


# options


def test_defaults(run: Run80, comparison: Comparison, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("compare").status == 0
    assert comparison.methods == tuple(method.name for method in choose_methods())
    assert comparison.settings == Settings()
    assert (tmp_path / "results" / "compare" / "results.json").is_file()


def test_options_reach_the_comparison(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    ended = run(
        *("compare", "--data", "digits", "--seeds", 4, "--epochs", 7, "--batch-size", 33),
        *("--num-samples", 9, "--device", "mps", "--output", tmp_path / "x"),
        *("--methods", "group,batch/mcbn"),
    )
    assert ended.status == 0
    assert comparison.methods == ("group/point", "group/fixed", "group/mean-field", "batch/mcbn")
    assert comparison.settings == Settings(
        seeds=(0, 1, 2, 3), epochs=7, batch_size=33, num_samples=9, device="mps"
    )


def test_methods_is_a_list_with_commas(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    run("compare", "--methods", "weight", "--output", tmp_path / "x")
    assert comparison.methods == tuple(name for name in METHODS if name.startswith("weight/"))


@pytest.mark.parametrize(
    ("option", "value", "smallest"),
    [("--seeds", 0, 1), ("--epochs", 0, 1), ("--batch-size", 1, 2), ("--num-samples", 0, 1)],
)
def test_numbers_out_of_range(
    run: Run80, comparison: Comparison, tmp_path: Path, option: str, value: int, smallest: int
) -> None:
    ended = run("compare", option, value, "--output", tmp_path / "x")
    assert ended.status == 2
    assert option in ended.err
    assert str(smallest) in ended.err
    assert comparison.settings is None


def test_help_lists_the_options() -> None:
    shown = CliRunner().invoke(cli.app, ["compare", "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    for option in ("data", "seeds", "methods", "epochs", "batch-size", "num-samples", "device"):
        assert f"--{option}" in shown.output
    for option in ("--output", "--force"):
        assert option in shown.output


def test_without_a_command_there_is_help(run: Run80) -> None:
    ended = run()
    assert "compare" in ended.out + ended.err
    assert "Usage" in ended.out + ended.err


# the table


@pytest.mark.parametrize("nll", [0.3, 12.3456])
def test_no_cell_is_cut_at_80_columns(
    run: Run80, comparison: Comparison, tmp_path: Path, nll: float
) -> None:
    comparison.nll = nll
    ended = run("compare", "--methods", "all", "--output", tmp_path / "x")
    _, rows = format_rows(pd.read_csv(tmp_path / "x" / "table.csv", index_col="method"))
    assert len(rows) == len(METHODS)
    assert table_lines(ended.out, list(METHODS)) == {row[0]: row[1:] for row in rows}
    assert "…" not in ended.out


def test_no_cell_is_cut_whatever_the_numbers(
    run: Run80, comparison: Comparison, tmp_path: Path
) -> None:
    comparison.nll, comparison.spread, comparison.seconds = 12.3, 10.2, 1000.0
    ended = run("compare", "--methods", "all", "--output", tmp_path / "x")
    _, rows = format_rows(pd.read_csv(tmp_path / "x" / "table.csv", index_col="method"))
    assert table_lines(ended.out, list(METHODS)) == {row[0]: row[1:] for row in rows}


# errors


def test_a_typo_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-c", "from pyronorm.cli import main; main()"),
            *("compare", "--methods", "batch/mcbm", "--output", str(tmp_path / "x")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    message = one_line(ended.stderr)
    assert "error: no method 'batch/mcbm'" in message
    assert all(name in message for name in METHODS)
    assert not (tmp_path / "x").exists()


def test_an_unknown_method(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    ended = run("compare", "--methods", "batch/point,wieght/fixed", "--output", tmp_path / "x")
    assert (ended.status, ended.out) == (2, "")
    message = one_line(ended.err)
    assert "no method 'wieght/fixed'. Did you mean 'weight/fixed'?" in message
    assert all(name in message for name in METHODS)
    assert comparison.settings is None
    assert not (tmp_path / "x").exists()


def test_an_unknown_data_set(run: Run80, tmp_path: Path) -> None:
    ended = run("compare", "--data", "mnist", "--output", tmp_path / "x")
    assert ended.status == 2
    assert "error: compare: no data set 'mnist'; choose from digits." in one_line(ended.err)
    assert "Traceback" not in ended.err
    assert not (tmp_path / "x").exists()


def test_an_unknown_option(run: Run80) -> None:
    ended = run("compare", "--epoch", 3)
    assert ended.status == 2
    assert "--epoch" in ended.err


def test_other_errors_keep_their_traceback(
    run: Run80, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(study, "compare", broken)
    with pytest.raises(ZeroDivisionError):
        run("compare", "--output", tmp_path / "x")


def test_an_existing_folder_is_refused(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("mine")
    ended = run("compare", "--output", tmp_path)
    assert (ended.status, ended.out) == (2, "")
    message = one_line(ended.err)
    assert "exists" in message
    assert "--output" in message
    assert "--force" in message
    assert tmp_path.name in ended.err.replace("\n", "")
    assert comparison.settings is None
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.json", "mine")]


def test_force_overwrites(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    output = tmp_path / "x"
    assert run("compare", "--methods", "batch/point", "--output", output).status == 0
    again = ("compare", "--methods", "group/fixed", "--seeds", 2, "--output", output)
    assert run(*again).status == 2
    assert run(*again, "--force").status == 0
    record = json.loads((output / "results.json").read_text())
    assert [r["method"] for r in record["runs"]] == ["group/fixed"] * 2
    assert record["command"].endswith("--force")
    assert list(pd.read_csv(output / "table.csv")["method"]) == ["group/fixed"]
    assert "batch/point |" not in (output / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["[bold]", "[/x]"])
def test_brackets_in_an_error(run: Run80, name: str) -> None:
    ended = run("compare", "--methods", name)
    assert ended.status == 2
    assert f"no method {name!r}" in one_line(ended.err)


def test_brackets_in_a_path(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    ended = run("compare", "--output", tmp_path / "[a]b")
    assert "[a]b" in ended.out.replace("\n", "")


def test_an_output_that_is_a_file(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    assert run("compare", "--output", file, "--force").status == 2
    assert comparison.settings is None


def test_an_unknown_device(run: Run80, tmp_path: Path) -> None:
    ended = run(
        *("compare", "--device", "cdua", "--methods", "batch/point", "--epochs", 1),
        *("--seeds", 1, "--output", tmp_path / "x"),
    )
    assert ended.status == 2
    assert "cdua" in ended.err


def test_spaces_after_commas(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    run("compare", "--methods", "batch/point, weight/fixed", "--output", tmp_path / "x")
    assert comparison.methods == ("batch/point", "weight/fixed")


def test_the_command_can_be_repeated(run: Run80, comparison: Comparison, tmp_path: Path) -> None:
    import shlex

    output = tmp_path / "my results"
    run("compare", "--output", output)
    command = json.loads((output / "results.json").read_text())["command"]
    assert shlex.split(command) == ["pyronorm", "compare", "--output", str(output)]


def test_chosen_methods_have_unambiguous_names() -> None:
    # What --methods splits at must not occur in a name.
    assert not [m.name for m in choose_methods() if re.search(r"[,\s]", m.name)]


# reference


def test_reference(run: Run80, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyronorm.priors import BatchNoise
    from pyronorm.study import reference

    few = {"width": 1, "num_data": 64, "epochs": 1, "chains": 2, "warmup": 8, "draws": 20}
    fewer = {"steps": 2, "particles": 1, "bank_rows": 21, "num_samples": 25, "directions": 2}
    tiny = reference.Settings(BatchNoise(64), 5, **few, **fewer)
    asked = []

    def quick(prior, seed):
        asked.append((prior, seed))
        return tiny

    monkeypatch.setattr(reference.Settings, "quick", quick)
    arguments = (
        *("reference", "--prior", "batch-noise", "--posteriors", "point,fixed-noise"),
        *("--seed", 5, "--quick", "--output", tmp_path / "x"),
    )
    ended = run(*arguments)
    assert (ended.status, ended.err) == (0, "")
    assert asked == [(BatchNoise(64), 5)]
    summary = pd.read_csv(tmp_path / "x" / "table.csv", index_col="posterior")
    _, rows = reference.format_rows(summary)
    assert [row[0] for row in rows] == ["nuts", "nuts-half", "point", "fixed-noise"]
    shown = table_lines(ended.out, [row[0] for row in rows])
    assert shown == {row[0]: " ".join(row[1:]).split() for row in rows}
    record = json.loads((tmp_path / "x" / "results.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("pyronorm reference --prior batch-noise")
    assert record["settings"]["seed"] == 5
    refused = run(*arguments)
    assert refused.status == 2
    assert "--force" in one_line(refused.err)


def test_reference_refuses_unknown_names(run: Run80, tmp_path: Path) -> None:
    for option, words in (("--prior", "no prior 'x'"), ("--posteriors", "no posterior 'x'")):
        ended = run("reference", option, "x", "--output", tmp_path / "x")
        assert ended.status == 2
        assert words in one_line(ended.err)
        assert not (tmp_path / "x").exists()
