"""The command line, mostly in process; once as a process of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pyronorm as pn
from pyronorm import cli, study
from pyronorm.study import (
    METHODS,
    STUDIES,
    Compare,
    CompareSettings,
    Comparison,
    Entry,
    Folder,
    Job,
    Outcome,
    Place,
    Row,
    Settings,
    Study,
    Training,
    TrainingNoiseSettings,
    catalog,
    choose_methods,
    format_table,
    restore_study,
)
from tests.limits import files_no_larger_than
from tests.processes import alive, wait_for
from tests.study.fakes import Fake, FakeSettings, fake, runs

DIGITS = ("study", "digits", "--quick")
NUMBERS = {"accuracy": 0.9, "ece": 0.05, "brier": 0.1, "nll_center": 0.31}


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
class Jobs:
    """Stands in for the jobs of comparisons, and notes what they were asked for."""

    nll: float = 0.3
    spread: float = 0.1
    seconds: float = 2.0
    settings: Settings | None = None
    places: set[Place] = field(default_factory=set)
    error: Exception | None = None

    def __call__(self, comparison: Comparison, job: Job, place: Place) -> Outcome:
        self.settings = comparison.settings
        self.places.add(place)
        if self.error is not None:
            raise self.error
        rows = [
            Row(
                method.name,
                job.seed,
                {
                    **NUMBERS,
                    "nll": self.nll + self.spread * job.seed + len(method.name) / 100,
                    "train_seconds": self.seconds * (1 + job.seed * len(method.name)),
                    "predict_ms": self.seconds,
                },
            )
            for method in comparison.methods
            if method.training == job.name
        ]
        return Outcome(rows, {"y": np.arange(3)})


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    stand_in = Jobs()
    monkeypatch.setattr(Comparison, "run", lambda self, job, place: stand_in(self, job, place))
    return stand_in


@pytest.fixture
def with_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: Mapping[str, Entry] = {
        **STUDIES,
        "fake": Entry(Fake, FakeSettings(seeds=(0,)), FakeSettings(size=9), "nothing [much]"),
        "broken": Entry(
            Fake,
            FakeSettings(trouble=(("a/x", 1, "library"),)),
            FakeSettings(trouble=tuple((m, s, "error") for m in ("a/x", "b/y") for s in (0, 1))),
            "goes wrong",
        ),
    }
    monkeypatch.setattr(catalog, "STUDIES", entries)
    monkeypatch.setattr(study, "STUDIES", entries)


def one_line(text: str) -> str:
    """Undo the wrapping at 80 columns."""
    return " ".join(text.split())


def table_lines(out: str, methods: list[str]) -> dict[str, list[str]]:
    """The words of each method's line; a cell may have several."""
    lines = [line.split() for line in out.splitlines()]
    return {words[0]: words[1:] for words in lines if words and words[0] in methods}


def expected_lines(folder: Path) -> dict[str, list[str]]:
    """The same of the results in the folder."""
    made = restore_study(Folder(folder).record)
    table = format_table(made.sections(Folder(folder).results(made))[0].tables[0])
    return {
        line[0]: " ".join(
            t + "*" * mark for t, mark in zip(line[1:], marks[1:], strict=True)
        ).split()
        for line, marks in zip(table.lines, table.differs, strict=True)
    }


# compare


def tiny() -> CompareSettings:
    """Both tasks in a few seconds."""
    few = TrainingNoiseSettings(
        data="digits",
        network="lenet-5-8",
        noise=(("batch", (8.0,)),),
        dropouts=(0.1,),
        after=(),
        members=2,
        num_train=60,
        num_validation=40,
        num_test=40,
        training=Training(1, 30, 2e-3),
        num_samples=2,
    )
    many = Settings(
        methods=("batch/point", "weight/fixed"),
        num_train=90,
        num_test=40,
        training=Training(1, 45),
        num_samples=2,
        bank_rows=11,
        arviz_samples=2,
        timed_predictions=1,
    )
    return CompareSettings(few, many)


def test_a_comparison(run: Run80, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {**STUDIES, "compare": replace(STUDIES["compare"], quick=tiny())}
    monkeypatch.setattr(catalog, "STUDIES", entries)
    output = tmp_path / "deep" / "run"
    ended = run("compare", "--seeds", 2, "--device", "cpu", "--output", output)
    assert ended.status == 0
    assert ended.err == ""
    record = Folder(output).record
    assert record["study"] == "compare"
    assert record["settings"]["seeds"] == record["settings"]["few"]["seeds"] == [0, 1]
    assert record["command"] == f"pyronorm compare --seeds 2 --device cpu --output {output}"
    made = restore_study(record)
    found = made.sections(Folder(output).results(made))
    assert len(found[0].tables) == 2
    for table in found[0].tables:
        shown = format_table(table)
        assert f"{shown.title}, 2 seeds" in ended.out
        for line in shown.lines:
            assert " ".join(line) in one_line(ended.out.replace("*", ""))
    assert "2 seeds test nothing" in one_line(ended.out)
    assert "10/10" in ended.out
    assert f"Report: {output}/report.html" in ended.out.replace("\n", "")
    files = {p.name for p in output.rglob("*") if p.is_file()}
    assert {"report.html", "report.md", "table-1.csv", "results.csv", "differences.png"} <= files
    assert sum(name.endswith(".nc") for name in files) == 2
    assert run("compare", "--seeds", 2, "--device", "cpu", "--output", output).status == 0


def test_defaults(run: Run80, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, object] = {}

    def runs(chosen: Study, folder: Path, **options: object) -> None:
        seen.update(options, study=chosen, folder=folder)
        raise pn.errors.OptionError("enough")

    monkeypatch.setattr("pyronorm.study.run_study", runs)
    run("compare")
    assert seen["study"] == Compare("compare", CompareSettings())
    assert (seen["place"], seen["folder"]) == (Place(), Path("results/compare"))
    assert (seen["processes"], seen["threads"], seen["force"]) == (1, 1, False)
    run("compare", "--seeds", 4, "--jobs", 3, "--threads", 2, "--device", "mps", "--force")
    assert seen["study"] == Compare("compare", CompareSettings(seeds=(0, 1, 2, 3)))
    assert (seen["processes"], seen["threads"], seen["force"]) == (3, 2, True)
    assert seen["place"] == Place(device="mps")


@pytest.mark.parametrize(
    ("option", "value", "smallest"),
    [
        ("--seeds", 0, 1),
        ("--jobs", 0, 1),
        ("--threads", 0, 1),
    ],
)
def test_numbers_out_of_range(
    run: Run80, jobs: Jobs, tmp_path: Path, option: str, value: int, smallest: int
) -> None:
    ended = run("compare", option, value, "--output", tmp_path / "x")
    assert ended.status == 2
    assert option in ended.err
    assert str(smallest) in ended.err
    assert jobs.settings is None


# help


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("compare", "seeds jobs scheduler threads device output force"),
        ("study", "quick seeds methods data-root jobs scheduler threads device output force"),
        ("report", ""),
    ],
)
def test_help_lists_the_options(command: str, options: str) -> None:
    shown = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert all(f"--{option}" in shown.output for option in options.split())


def test_without_a_command_there_is_help(run: Run80) -> None:
    ended = run()
    text = ended.out + ended.err
    assert "Usage" in text
    assert all(command in text for command in ("compare", "study", "report"))


# the table


@pytest.mark.parametrize("nll", [0.3, 12.3456])
def test_no_cell_is_cut_at_80_columns(run: Run80, jobs: Jobs, tmp_path: Path, nll: float) -> None:
    jobs.nll = nll
    ended = run(*DIGITS, "--methods", "all", "--output", tmp_path / "x")
    lines = expected_lines(tmp_path / "x")
    assert list(lines) == list(METHODS)
    assert table_lines(ended.out, list(METHODS)) == lines
    assert "…" not in ended.out


def test_no_cell_is_cut_whatever_the_numbers(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    jobs.nll, jobs.spread, jobs.seconds = 12.3, 10.2, 1000.0
    ended = run(*DIGITS, "--methods", "all", "--output", tmp_path / "x")
    assert table_lines(ended.out, list(METHODS)) == expected_lines(tmp_path / "x")


def test_one_seed_has_no_spread(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    ended = run(*DIGITS, "--seeds", 1, "--output", tmp_path / "x")
    assert "digits, 15 epochs, 1 seed" in ended.out
    assert "±" not in ended.out


# study


def test_the_list_of_studies(run: Run80, with_fake: None) -> None:
    ended = run("study")
    assert ended.status == 0
    text = one_line(ended.out)
    for name, entry in catalog.STUDIES.items():
        assert name in text
        assert entry.description.split()[0] in text
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    assert not list(Path().iterdir())


def test_a_study(run: Run80, with_fake: None, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    ended = run("study", "fake", "--quick", "--data-root", tmp_path / "data")
    assert (ended.status, ended.err) == (0, "")
    folder = tmp_path / "results" / f"fake-{fake().fingerprint()}"
    assert list((tmp_path / "results").iterdir()) == [folder]
    assert Folder(folder).record["settings"]["seeds"] == [0]
    assert table_lines(ended.out, ["a/x", "b/y"]) == expected_lines(folder)
    assert (folder / "report.html").is_file()
    assert runs(tmp_path / "data") == {"a-x-seed0": 1, "b-y-seed0": 1}
    # more seeds go on in the same folder
    ended = run("study", "fake", "--quick", "--seeds", 2, "--data-root", tmp_path / "data")
    assert ended.status == 0
    assert set(runs(tmp_path / "data").values()) == {1}
    assert len(runs(tmp_path / "data")) == 4
    assert "4/4" in ended.out


def test_sizes_have_folders_of_their_own(run: Run80, with_fake: None, tmp_path: Path) -> None:
    assert run("study", "fake").status == run("study", "fake", "--quick").status == 0
    names = {f"fake-{s.fingerprint()}" for s in (fake(size=9), fake())}
    assert {p.name for p in (tmp_path / "results").iterdir()} == names


def test_methods_of_a_study(run: Run80, with_fake: None, tmp_path: Path) -> None:
    assert run("study", "fake", "--methods", "c, d/e", "--output", tmp_path / "x").status == 0
    assert Folder(tmp_path / "x").record["settings"]["methods"] == ["c", "d/e"]


def test_jobs_at_once(
    run: Run80, with_fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def run_study(*args: object, **options: object) -> object:
        seen.update(options)
        return original(*args, **{**options, "processes": 1})

    original = study.run_study
    monkeypatch.setattr(study, "run_study", run_study)
    root = tmp_path / "d"
    root.mkdir()
    ended = run("study", "fake", "--jobs", 3, "--device", "cpu", "--data-root", root)
    assert ended.status == 0
    assert (seen["processes"], seen["scheduler"]) == (3, None)
    assert seen["place"] == Place(root, "cpu")
    assert run("study", "fake", "--jobs", 0).status == 2


def test_a_failed_job_ends_with_status_1_and_a_report(
    run: Run80, with_fake: None, tmp_path: Path
) -> None:
    ended = run("study", "broken", "--quick", "--output", tmp_path / "x")
    assert ended.status == 1
    message = one_line(ended.err)
    assert (
        "a/x, seed 1 failed: DataError: <script>alert('|')</script> `code` *star* [x](y)" in message
    )
    assert "Traceback" not in ended.err
    assert table_lines(ended.out, ["a/x", "b/y"]) == expected_lines(tmp_path / "x")
    assert "failed" in (tmp_path / "x" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["broken", "digits"])
def test_all_jobs_failed(
    run: Run80, with_fake: None, jobs: Jobs, tmp_path: Path, name: str
) -> None:
    jobs.error = ValueError("no [luck]")
    ended = run("study", name, "--output", tmp_path / "x")
    assert ended.status == 1
    assert ended.err.count(" failed: ValueError: ") == len(
        restore_study(Folder(tmp_path / "x").record).jobs()
    )
    assert "Traceback" not in ended.err
    assert (tmp_path / "x" / "report.html").is_file()


# report


def test_a_report_of_what_there_is(run: Run80, with_fake: None, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    run("study", "fake", "--output", folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for name in ("report.html", "report.md", "table-1.csv", "results.csv"):
        (folder / name).unlink()
    ended = run("report", folder)
    assert (ended.status, ended.err) == (0, "")
    assert f"Report: {folder}/report.html" in ended.out.replace("\n", "")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    (folder / "jobs" / "b-y-seed1.json").unlink()
    assert run("report", folder).status == 0
    assert "1 of 4 jobs have not been run yet" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_report_of_no_study(run: Run80, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        ended = run("report", folder)
        assert (ended.status, ended.out) == (2, "")
        assert "has no study.json" in one_line(ended.err)
        assert "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["study.json", "jobs/a-x-seed0.json", "jobs/a-x-seed0.npz"])
def test_a_report_of_damaged_files(run: Run80, with_fake: None, tmp_path: Path, file: str) -> None:
    run("study", "fake", "--quick", "--output", tmp_path / "x")
    (tmp_path / "x" / file).write_text("{")
    ended = run("report", tmp_path / "x")
    assert ended.status == 2
    assert file in ended.err.replace("\n", "")
    assert "Traceback" not in ended.err


# errors


def test_a_typo_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-c", "from pyronorm.cli import main; main()"),
            *(*DIGITS, "--methods", "batch/mcbm", "--output", str(tmp_path / "x")),
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


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("study digits --quick --methods batch/point,wieght/fixed", "Did you mean 'weight/fixed'?"),
        ("study digits --quick --methods ,", "no methods"),
        ("study digits --quick --methods [bold]", "no method '[bold]'"),
        ("study digits --quick --methods [/x]", "no method '[/x]'"),
        ("study digit", "no study 'digit'. Did you mean 'digits'?"),
        ("study digits --methods nothing", "no method 'nothing'"),
    ],
)
def test_a_mistake_ends_with_its_message(
    run: Run80, jobs: Jobs, tmp_path: Path, command: str, words: str
) -> None:
    ended = run(*command.split(), "--output", tmp_path / "x")
    assert (ended.status, ended.out) == (2, "")
    message = one_line(ended.err)
    assert message.startswith("error: ")
    assert words in message
    assert jobs.settings is None
    assert not (tmp_path / "x").exists()


def test_an_unknown_option(run: Run80) -> None:
    ended = run("compare", "--epochs", 3)
    assert ended.status == 2
    assert "--epochs" in ended.err


def test_other_errors_keep_their_traceback(
    run: Run80, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(study, "run_study", broken)
    with pytest.raises(ZeroDivisionError):
        run(*DIGITS, "--output", tmp_path / "x")


def test_a_folder_with_other_files_is_refused(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("mine")
    ended = run(*DIGITS, "--output", tmp_path, "--force")
    assert (ended.status, ended.out) == (2, "")
    assert "has files and no study.json" in one_line(ended.err)
    assert "--output" in one_line(ended.err)
    assert jobs.settings is None
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.json", "mine")]


def test_another_configuration_needs_force(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    output = tmp_path / "x"
    assert run(*DIGITS, "--methods", "batch/point", "--output", output).status == 0
    again = (*DIGITS, "--methods", "group/fixed", "--output", output)
    ended = run(*again)
    assert ended.status == 2
    message = one_line(ended.err)
    assert "methods is ['batch/point'] there, ['group/fixed'] here" in message
    assert "--force" in message
    assert run(*again, "--force").status == 0
    assert list(expected_lines(output)) == ["group/fixed"]
    assert Folder(output).record["command"].endswith("--force")
    assert "batch/point |" not in (output / "report.md").read_text(encoding="utf-8")


def test_the_same_again_runs_nothing(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    first = run(*DIGITS, "--output", tmp_path / "x")
    jobs.error = AssertionError("ran again")
    second = run(*DIGITS, "--output", tmp_path / "x")
    assert second.status == 0
    names = [method.name for method in choose_methods()]
    assert table_lines(second.out, names) == table_lines(first.out, names) != {}


def test_brackets_in_a_path(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    ended = run(*DIGITS, "--output", tmp_path / "[a]b")
    assert "[a]b" in ended.out.replace("\n", "")


def test_an_output_that_is_a_file(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    ended = run(*DIGITS, "--output", file, "--force")
    assert ended.status == 2
    assert "is a file" in one_line(ended.err)
    assert jobs.settings is None


def test_an_unknown_device(run: Run80, tmp_path: Path) -> None:
    ended = run(
        *(*DIGITS, "--device", "cdua", "--methods", "batch/point"),
        *("--seeds", 1, "--output", tmp_path / "x"),
    )
    assert ended.status == 1
    assert "batch/point, seed 0 failed" in one_line(ended.err)
    assert "cdua" in ended.err


def test_the_command_can_be_repeated(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    output = tmp_path / "my results"
    run(*DIGITS, "--output", output)
    command = Folder(output).record["command"]
    assert shlex.split(command) == ["pyronorm", *DIGITS, "--output", str(output)]


def test_chosen_methods_have_unambiguous_names() -> None:
    # What --methods splits at must not occur in a name.
    assert not [m.name for m in choose_methods() if re.search(r"[,\s]", m.name)]


# interruptions, disks, terminals


def started(root: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fake_cli", *map(str, arguments), "--data-root", root]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs_at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_ends_it_in_order_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, jobs_at_once: int
) -> None:
    """Ctrl-C reaches every process of a terminal; nobody but the first may answer."""
    output = tmp_path / "out"
    arguments = ("study", "slow", "--jobs", jobs_at_once, "--output", output, "--force")
    process = started(tmp_path, *arguments)
    wait_for(lambda: len(runs(tmp_path)) == jobs_at_once, "jobs at work")
    workers = {int(f.read_text()) for f in tmp_path.glob("*.runs")}
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 128 + number
    message = one_line(err)
    assert message.startswith("Stopped. What is finished is kept in")
    assert "run again to resume: pyronorm study slow" in message
    assert "--force" not in message
    assert "Traceback" not in err
    assert not any(map(alive, workers))
    assert not (output / "running.txt").exists()


def test_a_full_disk_is_one_line_and_status_1(tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ("study", "large", "--output", output)
    with files_no_larger_than(50_000):
        process = started(tmp_path, *arguments)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    message = one_line(err)
    assert message.startswith("error: ")
    whole = "".join(err.split())  # wherever a long path is wrapped
    assert "b-y-seed0.npz:cannotbewritten,Filetoolarge.1of4jobsarefinished" in whole
    assert "Traceback" not in err
    process = started(tmp_path, *arguments)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "1 of 4 jobs are finished already" in out
    assert runs(tmp_path)["a-x-seed0"] == 1


def test_a_folder_that_cannot_be_written(
    run: Run80, jobs: Jobs, no_locks: None, tmp_path: Path
) -> None:
    ended = run(*DIGITS, "--output", tmp_path / "x")
    assert (ended.status, ended.out) == (1, "")
    assert one_line(ended.err).endswith("x: cannot be written, Read-only file system.")
    assert jobs.settings is None


ESCAPE = "\x1b]0;title\x07\x1b[31m"


def test_a_path_does_not_command_the_terminal(run: Run80, jobs: Jobs, tmp_path: Path) -> None:
    output = tmp_path / f"a{ESCAPE}b"
    ended = run(*DIGITS, "--output", output)
    assert ended.status == 0
    shown = r"a\x1b]0;title\x07\x1b[31mb"
    assert shown in ended.out.replace("\n", "")
    again = run(*DIGITS, "--methods", "batch", "--output", output)
    assert shown in again.err.replace("\n", "")
    assert "\x1b" not in ended.out + again.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", f"--{ESCAPE}"),
        ("compare", f"--{ESCAPE}=3"),
        (f"{ESCAPE}",),
        ("compare", "--seeds", ESCAPE),
        ("study", "digits", "--methods", ESCAPE),
        ("study", ESCAPE),
        ("report", ESCAPE),
        ("reference", "--prior", ESCAPE),
    ],
    ids=repr,
)
def test_no_argument_commands_the_terminal(run: Run80, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.status == 2
    assert ended.err
    assert "\x1b" not in ended.out + ended.err


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
    again = run(*arguments)  # nothing is judged twice
    assert (again.status, again.err) == (0, "")
    assert table_lines(again.out, [row[0] for row in rows]) == shown
    monkeypatch.setattr(reference.Settings, "quick", lambda *_: replace(tiny, steps=3))
    refused = run(*arguments)
    assert refused.status == 2
    assert "steps is 2 there, 3 here" in one_line(refused.err)
    assert "--force" in one_line(refused.err)


def test_reference_leaves_other_files_alone(run: Run80, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = run("reference", "--output", tmp_path)
    assert ended.status == 2
    assert "has other files" in one_line(ended.err)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_reference_refuses_unknown_names(run: Run80, tmp_path: Path) -> None:
    for option, words in (("--prior", "no prior 'x'"), ("--posteriors", "no posterior 'x'")):
        ended = run("reference", option, "x", "--output", tmp_path / "x")
        assert ended.status == 2
        assert words in one_line(ended.err)
        assert not (tmp_path / "x").exists()
