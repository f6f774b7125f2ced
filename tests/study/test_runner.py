"""Jobs run, fail, die and are gone on with; what a whole run that was killed leaves behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyronorm.errors import FileError, OptionError
from pyronorm.study import Folder, Job, Place, Results, Study, run_study, write_report
from tests.limits import files_no_larger_than
from tests.processes import alive, wait_for
from tests.study.fakes import fake, runs

STUDY = fake(seeds=(4, 0))


def values_of(results: Results, without: str = "threads") -> list[tuple[str, int, dict]]:
    return [
        (row.method, row.seed, {k: v for k, v in row.values.items() if k != without})
        for row in results.rows
    ]


def run(study: Study, path: Path, root: Path | None = None, **options) -> Results:
    return run_study(study, path, place=Place(root), progress=False, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


# results


def test_results_of_all_jobs(tmp_path: Path) -> None:
    results = run(STUDY, tmp_path / "s", command="pyronorm study fake")
    assert [(row.method, row.seed) for row in results.rows] == [
        ("a/x", 4),
        ("b/y", 4),
        ("a/x", 0),
        ("b/y", 0),
    ]
    assert list(results.seconds) == STUDY.jobs()
    assert all(0 < seconds < 30 for seconds in results.seconds.values())
    assert results.failures == {}
    assert {tuple(arrays) for arrays in results.arrays.values()} == {("draws/1",)}
    assert Folder(tmp_path / "s").record["command"] == "pyronorm study fake"


def test_the_seed_of_a_job_decides_everything(tmp_path: Path) -> None:
    first = run(STUDY, tmp_path / "first")
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    other = fake(seeds=(0, 4), methods=("b/y", "a/x", "c/z"))
    second = run(other, tmp_path / "second")
    found = {row[:2]: row[2] for row in values_of(second)}
    for method, seed, values in values_of(first):
        assert found[method, seed] == values
    by_seed = {seed: values for _, seed, values in values_of(first)}
    assert all(by_seed[0][name] != by_seed[4][name] for name in ("torch", "numpy", "python"))
    for job in STUDY.jobs():
        a, b = first.arrays[job]["draws/1"], second.arrays[job]["draws/1"]
        np.testing.assert_array_equal(a, b)


def test_the_caller_draws_on_as_if_nothing_had_been(tmp_path: Path, unchecked: None) -> None:
    # Unchecked, for the suite's type checks draw from Python's generator.
    study = fake(trouble=(("b/y", 0, "error"),))

    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002

    pyro.set_rng_seed(5)
    expected = [draw() for _ in range(2)]
    pyro.set_rng_seed(5)
    kept = pyro.param("fake", torch.zeros(3))
    assert draw() == expected[0]
    run(study, tmp_path / "s")
    assert draw() == expected[1]
    assert list(pyro.get_param_store().keys()) == ["fake"]
    assert pyro.param("fake") is kept


# going on


def test_finished_jobs_are_not_repeated(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "s"
    first = run(fake(seeds=(0,)), path, root)
    files = {f: f.stat().st_mtime_ns for f in (path / "jobs").iterdir()}
    second = run(fake(seeds=(0, 1)), path, root)
    assert runs(root) == {f"{m}-seed{s}": 1 for m in ("a-x", "b-y") for s in (0, 1)}
    assert {f: f.stat().st_mtime_ns for f in files} == files
    assert values_of(second)[:2] == values_of(first)


def test_force_repeats_everything(tmp_path: Path, root: Path) -> None:
    run(STUDY, tmp_path / "s", root)
    run(STUDY, tmp_path / "s", root, force=True)
    assert set(runs(root).values()) == {2}


def test_another_configuration_is_refused_before_anything_runs(tmp_path: Path, root: Path) -> None:
    run(fake(seeds=(0,)), tmp_path / "s", root)
    with pytest.raises(OptionError, match=r"factor is 1\.0 there, 3\.0 here"):
        run(fake(seeds=(0, 1), factor=3.0), tmp_path / "s", root)
    assert set(runs(root)) == {"a-x-seed0", "b-y-seed0"}


@pytest.mark.parametrize("processes", [0, -1])
def test_no_processes(tmp_path: Path, processes: int) -> None:
    with pytest.raises(OptionError, match=f"at least 1, an integer, got {processes}"):
        run(STUDY, tmp_path / "s", processes=processes)
    assert not (tmp_path / "s").exists()


def test_no_jobs(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="fake has no jobs"):
        run(fake(methods=()), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("methods", [("a/x", "a-x"), ("a", "a"), ("α", "β")])
def test_jobs_whose_files_would_be_the_same(tmp_path: Path, methods: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match=f"{methods[0]}, seed 0; {methods[1]}, seed 0"):
        run(fake(methods=methods), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_threads_of_a_job(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for threads in (1, 3):
        results = run(fake(seeds=(0,)), tmp_path / str(threads), threads=threads)
        assert {row.values["threads"] for row in results.rows} == {float(threads)}
        assert torch.get_num_threads() == before
    with pytest.raises(OptionError, match="threads must be at least 1, an integer, got 0"):
        run(STUDY, tmp_path / "s", threads=0)


# failures


def test_a_failing_job_is_noted_and_the_others_go_on(tmp_path: Path, root: Path) -> None:
    study = fake(trouble=(("a/x", 0, "error"), ("b/y", 1, "silent"), ("a/x", 1, "surrogate")))
    results = run(study, tmp_path / "s", root)
    assert [(row.method, row.seed) for row in results.rows] == [("b/y", 0)]
    failures = {str(job): text for job, text in results.failures.items()}
    assert failures.keys() == {"a/x, seed 0", "b/y, seed 1", "a/x, seed 1"}
    assert failures["a/x, seed 0"] == "ValueError: out of luck"
    assert failures["b/y, seed 1"].startswith("KeyError:")
    assert failures["a/x, seed 1"].startswith("OSError: no file caf")
    note = (tmp_path / "s" / "jobs" / "a-x-seed0.error.txt").read_text(encoding="utf-8")
    assert "Traceback" in note
    assert "and a second line" in note


def test_failed_jobs_are_tried_again(tmp_path: Path, root: Path) -> None:
    study = fake(trouble=(("a/x", 1, "error"),))
    assert len(run(study, tmp_path / "s", root).failures) == 1
    assert len(run(study, tmp_path / "s", root).failures) == 1
    (root / "healed").touch()
    results = run(study, tmp_path / "s", root)
    assert results.failures == {}
    expected = {"a-x-seed0": 1, "b-y-seed0": 1, "a-x-seed1": 3, "b-y-seed1": 1}
    assert runs(root) == expected
    assert values_of(results) == values_of(run(fake(), tmp_path / "untroubled"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_that_cannot_be_written_end_the_study(
    tmp_path: Path, root: Path, processes: int
) -> None:
    """One line, nothing half written, and the same call goes on."""
    study = fake(methods=("a", "b", "c"), seeds=(0,), numbers=(("b", 20_000),))
    with (
        files_no_larger_than(50_000),
        pytest.raises(FileError, match=r"b-seed0\.npz: cannot be written, File too large") as error,
    ):
        run(study, tmp_path / "s", root, processes=processes)
    text = str(error.value)
    assert "\n" not in text
    assert "of 3 jobs are finished and kept" in text
    assert "run the study again to go on" in text
    results = run(study, tmp_path / "s", root)
    assert len(results.rows) == 3
    assert results.failures == {}


def test_a_job_that_asks_python_to_exit_is_a_failure(tmp_path: Path, root: Path) -> None:
    results = run(fake(seeds=(0,), trouble=(("a/x", 0, "sys.exit"),)), tmp_path / "s", root)
    assert list(results.failures.values()) == ["SystemExit: 3"]
    assert len(results.rows) == 1


def test_a_file_error_of_the_job_itself_is_a_failure(tmp_path: Path, root: Path) -> None:
    results = run(fake(seeds=(0,), trouble=(("a/x", 0, "file"),)), tmp_path / "s", root)
    assert list(results.failures.values()) == ["FileError: its own"]
    assert len(results.rows) == 1


def test_a_damaged_job_is_run_anew_and_no_other(tmp_path: Path, root: Path) -> None:
    first = run(STUDY, tmp_path / "s", root)
    job = STUDY.jobs()[2]
    (tmp_path / "s" / "jobs" / f"{job.key}.npz").write_bytes(b"")
    second = run(STUDY, tmp_path / "s", root)
    assert runs(root) == {j.key: 2 if j == job else 1 for j in STUDY.jobs()}
    assert values_of(second) == values_of(first)


def test_a_damaged_job_that_then_fails_has_failed(tmp_path: Path, root: Path) -> None:
    study = fake(seeds=(0,), trouble=(("a/x", 0, "error"),))
    (root / "healed").touch()
    run(study, tmp_path / "s", root)
    (root / "healed").unlink()
    (tmp_path / "s" / "jobs" / "a-x-seed0.npz").unlink()
    results = run(study, tmp_path / "s", root)
    assert list(results.failures.values()) == ["ValueError: out of luck"]


def test_force_beside_a_link_reports_the_new_configuration(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "s"
    run(fake(seeds=(0,)), path, root)
    (path / "jobs").rename(tmp_path / "elsewhere")
    (path / "jobs").symlink_to(tmp_path / "elsewhere")
    other = fake(seeds=(0,), factor=3.0)
    results = run(other, path, root, force=True)
    assert values_of(results) == values_of(run(other, tmp_path / "fresh", root))


def test_two_runs_in_one_folder(tmp_path: Path, root: Path) -> None:
    """One runs, the other says why not and with which process; then it goes on."""
    path = tmp_path / "s"
    process = start(path, root, 1, 30.0, 1)
    try:
        wait_for(lambda: len(runs(root)) == 1, "a job at work")
        for force in (False, True):
            message = f"fake: another run works in .*: process {process.pid} on"
            with pytest.raises(OptionError, match=message):
                run(fake(seeds=(0,), seconds=30.0), path, root, force=force)
    finally:
        process.kill()
        process.wait()
    (root / "unhurried").touch()
    results = run(fake(seeds=(0,), seconds=30.0), path, root)
    assert len(results.rows) == 2


def test_paths_may_be_text(tmp_path: Path, root: Path) -> None:
    path = str(tmp_path / "s")
    results = run_study(STUDY, path, place=Place(str(root)), progress=False)
    assert len(results.rows) == 4
    assert write_report(STUDY, path).is_file()
    assert Folder(path).record["study"] == "fake"


def test_an_interruption_goes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = fake()
    ran = type(study).run

    def interrupted(self: Study, job: Job, place: Place) -> object:
        if job == study.jobs()[2]:
            raise KeyboardInterrupt
        return ran(study, job, place)

    monkeypatch.setattr(type(study), "run", interrupted)
    pyro.param("mine", torch.zeros(1))
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "s")
    assert list(pyro.get_param_store().keys()) == ["mine"]
    results = Folder(tmp_path / "s").results(study)
    assert len(results.rows) == 2
    assert results.failures == {}


# killed


def start(path: Path, root: Path, *numbers: float) -> subprocess.Popen[bytes]:
    """With so many processes, seconds per job, and seeds."""
    arguments = map(str, (path, root, *numbers))
    command = [sys.executable, "-m", "tests.study.fakes", *arguments]
    return subprocess.Popen(command, start_new_session=True)


def finished(path: Path) -> set[str]:
    return {f.stem for f in (path / "jobs").glob("*.json")}


def test_a_run_that_was_killed_is_gone_on_with(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "s"
    study = fake(seeds=(0, 1, 2), seconds=0.2)
    process = start(path, root, 1, 0.2, 3)
    try:
        # In the middle of the third job.
        wait_for(lambda: len(finished(path)) >= 2 and len(runs(root)) >= 3, "two finished jobs")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = finished(path)
    begun = runs(root)
    assert 2 <= len(done) < 6
    kept = {f: f.stat().st_mtime_ns for f in (path / "jobs").glob("*.json")}

    partial = write_report(study, path).read_text(encoding="utf-8")
    assert f"{6 - len(done)} of 6 jobs have not been run yet" in partial

    (root / "unhurried").touch()
    results = run(study, path, root)
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    again = runs(root)
    assert all(again[job] == begun[job] for job in done)
    assert all(
        again[job.key] == begun.get(job.key, 0) + 1 for job in study.jobs() if job.key not in done
    )

    whole = run(study, tmp_path / "whole", root)
    assert values_of(results) == values_of(whole)
    write_report(study, path)
    write_report(study, tmp_path / "whole")
    for name in ("table-1.csv", "results.csv"):
        mine, theirs = (pd.read_csv(p / name) for p in (path, tmp_path / "whole"))
        pd.testing.assert_frame_equal(
            mine.drop(columns="threads", errors="ignore"),
            theirs.drop(columns="threads", errors="ignore"),
        )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_processes_end_with_the_run_that_started_them(tmp_path: Path, root: Path) -> None:
    process = start(tmp_path / "s", root, 2, 30.0, 1)
    try:
        wait_for(lambda: len(runs(root)) == 2, "two jobs at work")
        workers = [int(f.read_text()) for f in root.glob("*.runs")]
        assert all(map(alive, workers))
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(alive, workers)), "the workers' end")
    finally:
        process.kill()
    assert finished(tmp_path / "s") == set()
