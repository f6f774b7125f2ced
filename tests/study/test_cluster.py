"""Jobs on Dask: a scheduler that runs, workers that are killed, what is said without Dask."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pyronorm.errors import OptionError
from pyronorm.study import Folder, Job, Place, Results, Study, run_study, runner
from tests.processes import wait_for
from tests.study.fakes import Fake, fake, runs
from tests.study.test_runner import run


def values_of(results: Results) -> list[tuple[str, int, dict[str, float]]]:
    """Without what is of Python's generator, from which Dask's threads draw as well."""
    return [
        (row.method, row.seed, {k: v for k, v in row.values.items() if k != "python"})
        for row in results.rows
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def address() -> Iterator[str]:
    """A scheduler with one worker that has two threads, in this process."""
    import distributed

    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp",
        dashboard_address=None,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_workers_of_a_scheduler_give_the_same_results(
    tmp_path: Path, root: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are said from this folder; jobs in one process wait for each other."""
    monkeypatch.chdir(tmp_path)
    at_work: list[str] = []
    ran = Fake.run

    def noted(self: Fake, job: Job, place: Place) -> object:
        assert not at_work
        at_work.append(threading.current_thread().name)
        try:
            return ran(self, job, place)
        finally:
            at_work.clear()

    monkeypatch.setattr(Fake, "run", noted)
    study = fake(trouble=(("b/y", 1, "error"),))
    results = run(study, Path("s"), Path("data"), scheduler=address, threads=3)
    alone = run(study, tmp_path / "alone", threads=3)
    assert values_of(results) == values_of(alone) != []
    assert results.failures == alone.failures != {}
    assert torch.get_num_threads() != 3
    assert set(runs(root).values()) == {1}


def test_a_scheduler_or_processes() -> None:
    with pytest.raises(OptionError, match="processes=2 are of this machine, scheduler='tcp://x'"):
        run_study(fake(), "never", processes=2, scheduler="tcp://x")
    assert not Path("never").exists()


@pytest.mark.parametrize("options", [{"processes": 2}, {"scheduler": "tcp://127.0.0.1:1"}])
def test_without_dask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r"need Dask: pip install 'pyronorm\[distributed\]'"):
        run_study(fake(), tmp_path / "s", progress=False, **options)
    assert not (tmp_path / "s").exists()
    assert len(run(fake(), tmp_path / "s").rows) == 4


def test_gpus_have_the_names_the_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert runner._gpus(Place()) == runner._gpus(Place(device="cuda")) == ["0", "1"]
    assert runner._gpus(Place(device="cpu")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-3f")
    assert runner._gpus(Place()) == ["5", "GPU-3f"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert runner._gpus(Place()) == []


# processes of this machine


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, Results]:
    """Three jobs in two processes at once, of which two fail, each in another way."""
    path = tmp_path_factory.mktemp("processes")
    study = fake(
        methods=("a", "b", "c"),
        seeds=(2,),
        trouble=(("a", 2, "kill"), ("c", 2, "quiet")),
    )
    return study, path, run(study, path, path, processes=2)


@pytest.mark.slow
def test_processes_give_the_same_results_as_one(
    in_processes: tuple[Study, Path, Results], tmp_path: Path
) -> None:
    _, path, results = in_processes
    alone = run(fake(methods=("b",), seeds=(2,)), tmp_path / "s")
    assert values_of(results) == values_of(alone) != []
    assert {row.values["threads"] for row in results.rows} == {1.0}
    assert runs(path)["b-seed2"] == 1
    used = {number for file in path.glob("*.runs") for number in file.read_text().splitlines()}
    assert str(os.getpid()) not in used


@pytest.mark.slow
def test_a_job_whose_processes_die_has_failed(in_processes: tuple[Study, Path, Results]) -> None:
    _, path, results = in_processes
    failures = {job.name: text for job, text in results.failures.items()}
    text = "the processes that were to run it ended, 3 times"
    assert failures == {"a": text, "c": text}
    begun = runs(path)
    assert begun["b-seed2"] == 1
    # Where one waits for its turn when the other ends the process, that counts as well.
    assert all(1 <= begun[f"{name}-seed2"] <= 3 for name in "ac")


@pytest.mark.slow
def test_a_killed_worker_costs_a_job_and_no_result(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One of two is killed in the middle of its first job."""
    monkeypatch.chdir(tmp_path)
    study = fake(seeds=(0, 1, 2), seconds=1.0)
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: len(runs(root)) == 2, "two jobs at work")
        killed.append(int(next(root.glob("*.runs")).read_text()))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    results = run(study, tmp_path / "s", root, processes=2)
    thread.join()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert sorted(runs(root).values()) == [1, 1, 1, 1, 1, 2]
    (root / "unhurried").touch()
    alone = run(study, tmp_path / "alone", root)
    assert values_of(results) == values_of(alone)
    assert len(Folder(tmp_path / "s").results(study).rows) == 6
    # Dask's own files are elsewhere, and gone.
    assert {p.name for p in tmp_path.iterdir()} == {"data", "s", "alone"}
