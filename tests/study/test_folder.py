"""The folder of a study: what counts as finished, what is refused, what comes back."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch

import pyronorm as pn
from pyronorm.errors import DataError, OptionError
from pyronorm.study import Folder, Job, Outcome, Row
from pyronorm.study import folder as module
from tests.study.fakes import Inner, fake

STUDY = fake(seeds=(3, 1))
JOBS = STUDY.jobs()
OUTCOME = Outcome([Row("a/x", 3, {"nll": 0.5})])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "deep" / "study")
    made.start(STUDY, "pyronorm study fake")
    return made


def strict_json(file: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


def listing(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


# finished, or not


def test_finished_if_and_only_if_the_json_is_there(folder: Folder) -> None:
    assert not any(map(folder.finished, JOBS))
    folder.write(JOBS[0], OUTCOME, 1.0)
    assert [folder.finished(job) for job in JOBS] == [True, False, False, False]
    (folder.path / "jobs" / f"{JOBS[0].key}.json").unlink()
    assert not folder.finished(JOBS[0])
    assert folder.results(STUDY).rows == []


def test_a_job_is_not_finished_before_its_arrays_and_arviz_data(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Idata:
        def to_netcdf(self, name: str) -> None:
            seen.append(folder.finished(JOBS[0]))
            Path(name).write_text("x")

    write = module._write_json

    def spied(file: Path, record: dict[str, Any]) -> None:
        seen.append((folder.path / "jobs" / f"{JOBS[0].key}.npz").is_file())
        seen.append(listing(folder.path / "arviz"))
        write(file, record)

    monkeypatch.setattr(module, "_write_json", spied)
    folder.write(JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(3)}, {"a/x": Idata()}), 1.0)
    assert seen == [False, True, ["a-x-seed3-a-x.nc"]]
    assert folder.finished(JOBS[0])


def test_what_cannot_be_written_leaves_the_job_unfinished(folder: Folder) -> None:
    class Idata:
        def to_netcdf(self, name: str) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.write(JOBS[0], Outcome(OUTCOME.rows, {}, {"a/x": Idata()}), 1.0)
    assert not folder.finished(JOBS[0])


@pytest.mark.parametrize("where", ["text", "move"])
def test_a_file_is_whole_or_not_there(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder.write(JOBS[0], OUTCOME, 1.0)
    before = (folder.path / "jobs" / f"{JOBS[0].key}.json").read_bytes()
    write, replace = Path.write_text, Path.replace

    class Stop(BaseException):
        pass

    def half(path: Path, text: str, **options: Any) -> int:
        write(path, text[: len(text) // 2], **options)
        raise Stop

    def stop(path: Path, target: Path) -> Path:
        if path.name.endswith(".json.part"):
            raise Stop
        return replace(path, target)

    if where == "text":
        monkeypatch.setattr(Path, "write_text", half)
    else:
        monkeypatch.setattr(Path, "replace", stop)
    for job in JOBS[:2]:
        with pytest.raises(Stop):
            folder.write(job, Outcome([Row("b/y", 3, {"nll": 9.0})]), 1.0)
    monkeypatch.undo()
    assert (folder.path / "jobs" / f"{JOBS[0].key}.json").read_bytes() == before
    assert not folder.finished(JOBS[1])


def test_arrays_of_an_earlier_try_do_not_count(folder: Folder) -> None:
    folder.write(JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(3)}), 1.0)
    (folder.path / "jobs" / f"{JOBS[0].key}.json").unlink()
    folder.write(JOBS[0], OUTCOME, 1.0)
    assert JOBS[0] not in folder.results(STUDY).arrays


# starting


def test_the_record(folder: Folder) -> None:
    record = strict_json(folder.path / "study.json")
    assert record == folder.record
    assert record["study"] == "fake"
    assert record["settings"]["seeds"] == [3, 1]
    assert record["settings"]["inner"] == {"steps": 3, "rates": [0.1, 0.2]}
    assert record["settings"]["size"] is None
    assert record["fingerprint"] == STUDY.fingerprint()
    assert record["command"] == "pyronorm study fake"
    assert {
        "python",
        "pyronorm",
        "torch",
        "pyro-ppl",
        "arviz",
        "numpy",
        "threads",
        "commit",
    } <= set(record["environment"])


def test_the_same_configuration_goes_on(folder: Folder) -> None:
    folder.write(JOBS[0], OUTCOME, 1.0)
    Folder(folder.path).start(STUDY, "again")
    assert folder.finished(JOBS[0])
    assert folder.record["command"] == "again"


def test_more_seeds_go_on(folder: Folder) -> None:
    folder.write(JOBS[0], OUTCOME, 1.0)
    more = fake(seeds=(0, 3))
    folder.start(more, "more")
    assert [job for job in more.jobs() if folder.finished(job)] == [Job("a/x", 3)]
    assert folder.record["settings"]["seeds"] == [0, 3]


def test_another_configuration_is_refused_and_named(folder: Folder) -> None:
    other = fake(seeds=(9,), factor=2.5, size=7, inner=Inner(rates=(0.1, 0.3)))
    before = (folder.path / "study.json").read_bytes()
    with pytest.raises(OptionError) as error:
        folder.start(other, "")
    message = str(error.value)
    assert str(folder.path) in message
    assert "factor is 1.0 there, 2.5 here" in message
    assert "size is None there, 7 here" in message
    assert "inner.rates is [0.1, 0.2] there, [0.1, 0.3] here" in message
    assert "--output" in message
    assert "--force" in message
    assert not any(word in message for word in ("seeds", "steps", "methods"))
    assert (folder.path / "study.json").read_bytes() == before


def test_another_study_is_refused(folder: Folder) -> None:
    other = type(STUDY)("other", STUDY.settings)
    with pytest.raises(OptionError, match="the study is fake there, other here"):
        folder.start(other, "")


def test_a_setting_that_one_version_lacks_is_named(folder: Folder) -> None:
    record = folder.record
    del record["settings"]["size"]
    record["fingerprint"] = "00000000"
    (folder.path / "study.json").write_text(json.dumps(record))
    with pytest.raises(OptionError, match="size is not a setting there, None here"):
        folder.start(STUDY, "")


def test_force_removes_what_studies_write_and_nothing_else(folder: Folder) -> None:
    folder.write(JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(3)}), 1.0)
    written = ("report.html", "report.md", "results.csv", "table-1.csv", "plots/nll.png")
    mine = ("notes.md", "data.json", "own.csv", "table.csv", "figures/mine.png")
    for name in written + mine:
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("x")
    other = fake(factor=2.0)
    folder.start(other, "", force=True)
    assert listing(folder.path) == sorted(("study.json", *mine))
    assert folder.record["fingerprint"] == other.fingerprint()
    assert not folder.finished(JOBS[0])


def test_force_on_a_damaged_record(folder: Folder) -> None:
    (folder.path / "study.json").write_text("{")
    with pytest.raises(DataError, match=r"study\.json cannot be read as JSON.*--force"):
        folder.start(STUDY, "")
    folder.start(STUDY, "", force=True)
    assert folder.record["fingerprint"] == STUDY.fingerprint()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "jobs/a.json", ".hidden"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str, force: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(OptionError, match=r"has files and no study\.json"):
        Folder(tmp_path).start(STUDY, "", force)
    assert listing(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_refused(tmp_path: Path, force: bool) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(OptionError, match=r"notes\.txt is a file"):
        Folder(file).start(STUDY, "", force)
    assert file.read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    Folder(tmp_path).start(STUDY, "")
    assert Folder(tmp_path).record["study"] == "fake"


@pytest.mark.parametrize("force", [False, True])
def test_a_start_that_was_killed_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    # Killed at any of the calls that change something in the folder.
    for last in range(10):
        path = tmp_path / str(last)
        with monkeypatch.context() as patch:
            ended = _killed_at(path, last, patch)
        Folder(path).start(STUDY, "again", force)
        assert Folder(path).record["command"] == "again"
        Folder(path).write(JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(2)}), 1.0)
        if ended:
            break
    assert last > 3
    assert ended


def _killed_at(path: Path, last: int, patch: pytest.MonkeyPatch) -> bool:
    class Stop(BaseException):
        pass

    calls = 0

    def counted(name: str) -> None:
        function = getattr(Path, name)

        def call(self: Path, *args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last:
                raise Stop
            return function(self, *args, **options)

        patch.setattr(Path, name, call)

    for name in ("write_text", "replace", "mkdir"):
        counted(name)
    try:
        Folder(path).start(STUDY, "first")
    except Stop:
        return False
    return True


# not a study's folder


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere has no study\.json.*pyronorm study"):
        _ = Folder(tmp_path / "nowhere").record


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"study": "fake"}', '{"study": 1}', b"\xff\xfe\x00"],
    ids=str,
)
def test_a_damaged_record(folder: Folder, text: str | bytes) -> None:
    file = folder.path / "study.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        _ = folder.record
    assert str(file) in str(error.value)
    with pytest.raises(DataError):
        folder.start(STUDY, "")


@pytest.mark.parametrize("key", ["study", "settings", "fingerprint", "command", "environment"])
def test_a_record_without_a_part(folder: Folder, key: str) -> None:
    record = folder.record
    del record[key]
    (folder.path / "study.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=f"no {key}"):
        _ = folder.record


# what comes back


def test_rows_come_back_in_the_order_of_the_jobs(folder: Folder) -> None:
    rows = {
        job: [
            Row(job.name, job.seed, {"nll": 0.1 * i, "accuracy": 1 / 3}, {"batch size": 32 + k})
            for k in range(2)
        ]
        for i, job in enumerate(JOBS)
    }
    for job in reversed(JOBS):
        folder.write(job, Outcome(rows[job]), 1.5 + job.seed)
    results = folder.results(STUDY)
    assert list(results.rows) == [row for job in JOBS for row in rows[job]]
    assert results.seconds == {job: 1.5 + job.seed for job in JOBS}
    assert results.failures == {}
    assert set(map(str, results.environments)) == set(map(str, results.seconds))
    for there in results.environments.values():
        assert there["commit"] == folder.record["environment"]["commit"]


def test_jobs_of_other_seeds_are_left_out(folder: Folder) -> None:
    folder.write(JOBS[0], OUTCOME, 1.0)
    folder.start(fake(seeds=(1,)), "")
    assert folder.results(fake(seeds=(1,))).rows == []
    assert len(folder.results(STUDY).rows) == 1


def test_values_that_are_not_finite(folder: Folder) -> None:
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "tiny": 5e-324, "int": 3}
    row = Row("a/x", 3, values, {"n": math.inf, "m": -math.inf, "text": "nan", "k": 0.1})
    folder.write(JOBS[0], Outcome([row]), 1.0)
    strict_json(folder.path / "jobs" / f"{JOBS[0].key}.json")
    (back,) = folder.results(STUDY).rows
    assert math.isnan(back.values["nan"])
    assert {k: v for k, v in back.values.items() if k != "nan"} == {
        "inf": math.inf,
        "minus": -math.inf,
        "tiny": 5e-324,
        "int": 3.0,
    }
    assert back.condition == row.condition
    assert all(isinstance(value, float) for value in back.values.values())


def test_numbers_of_numpy_and_torch(folder: Folder, unchecked: None) -> None:
    values = {
        "half": np.float32(0.5),
        "nan": np.float32("nan"),
        "long": np.int64(7),
        "tensor": torch.tensor(0.25),
    }
    condition = {"n": np.int64(32), "s": np.float32(0.5)}
    folder.write(JOBS[0], Outcome([Row("a/x", 3, values, condition)]), 1.0)
    (back,) = folder.results(STUDY).rows
    assert back.values == pytest.approx(
        {"half": 0.5, "nan": math.nan, "long": 7.0, "tensor": 0.25}, nan_ok=True
    )
    assert back.condition == {"n": 32, "s": 0.5}


def test_arrays_come_back(folder: Folder) -> None:
    arrays = {
        "batch/point": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
        "y": np.array([1, -2, 3]),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 5)),
        "names": np.array(["a/x", "β"]),
        "scalar": np.array(np.nan),
    }
    folder.write(JOBS[0], Outcome(OUTCOME.rows, arrays), 1.0)
    back = folder.results(STUDY).arrays
    assert list(back) == [JOBS[0]]
    assert list(back[JOBS[0]]) == list(arrays)
    for name, array in arrays.items():
        assert back[JOBS[0]][name].dtype == array.dtype
        np.testing.assert_array_equal(back[JOBS[0]][name], array)


def test_arrays_of_objects_are_refused(folder: Folder) -> None:
    arrays = {"p": np.ones(2), "texts": np.array([None, "x"], dtype=object)}
    with pytest.raises(DataError, match="'texts' holds Python objects"):
        folder.write(JOBS[0], Outcome(OUTCOME.rows, arrays), 1.0)
    assert not folder.finished(JOBS[0])


def exported(z: np.ndarray) -> Any:
    groups = {"posterior": {"z": z}}
    return az.from_dict(**groups) if az.__version__.startswith("0.") else az.from_dict(groups)


def test_arviz_data_come_back_under_their_names(folder: Folder) -> None:
    made = {}
    for i, job in enumerate(JOBS[:2]):  # the same names in two jobs of a seed
        made[job] = {
            name: exported(np.full((1, 3), 10.0 * i + k))
            for k, name in enumerate(("batch/mcbn", "weight/fixed"))
        }
        folder.write(job, Outcome(OUTCOME.rows, {}, made[job]), 1.0)
    found = folder.results(STUDY).arviz
    files = [file for job in JOBS[:2] for file in found[job].values()]
    assert len(set(files)) == 4
    assert listing(folder.path / "arviz") == sorted(file.name for file in files)
    for job, idatas in made.items():
        assert list(found[job]) == list(idatas)
        for name, idata in idatas.items():
            back = az.from_netcdf(str(found[job][name]))
            np.testing.assert_array_equal(
                back["posterior"]["z"].values, idata["posterior"]["z"].values
            )


# failures


def test_failures_are_noted_and_cleared_on_success(folder: Folder) -> None:
    folder.fail(JOBS[1], "ValueError: bad\nluck", "Traceback\n  deep")
    results = folder.results(STUDY)
    assert results.failures == {JOBS[1]: "ValueError: bad luck"}
    assert results.rows == []
    assert not folder.finished(JOBS[1])
    note = (folder.path / "jobs" / f"{JOBS[1].key}.error.txt").read_text(encoding="utf-8")
    assert note.endswith("Traceback\n  deep")
    folder.write(JOBS[1], OUTCOME, 1.0)
    assert folder.results(STUDY).failures == {}
    assert not folder.failed(JOBS[1])


def test_a_failure_with_nothing_to_say(folder: Folder) -> None:
    (folder.path / "jobs" / f"{JOBS[1].key}.error.txt").write_text("")
    assert folder.results(STUDY).failures == {JOBS[1]: "for a reason unknown"}


def test_a_failure_with_text_that_is_no_unicode(folder: Folder) -> None:
    folder.fail(JOBS[1], "OSError: caf\udce9", "\udce9")
    assert "caf" in folder.results(STUDY).failures[JOBS[1]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"rows": [',
        "[]",
        "{}",
        '{"seconds": 1}',
        '{"rows": 3, "seconds": 1, "environment": {}, "arviz": []}',
        '{"rows": [{"method": "a"}], "seconds": 1, "environment": {}, "arviz": []}',
        '{"rows": [], "seconds": "x", "environment": {}, "arviz": []}',
        '{"rows": [], "seconds": 1, "environment": [], "arviz": []}',
        b"\xff",
    ],
    ids=str,
)
def test_a_damaged_job_is_named(folder: Folder, text: str | bytes) -> None:
    file = folder.path / "jobs" / f"{JOBS[2].key}.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        folder.results(STUDY)
    message = str(error.value)
    assert str(file) in message
    assert "remove it" in message
    assert str(JOBS[2]) in message


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_damaged_arrays_are_named(folder: Folder, cut: int) -> None:
    generator = np.random.default_rng(0)
    folder.write(JOBS[2], Outcome(OUTCOME.rows, {"p": generator.normal(size=300)}), 1.0)
    file = folder.path / "jobs" / f"{JOBS[2].key}.npz"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DataError) as error:
        folder.results(STUDY)
    assert str(file) in str(error.value)


def test_arrays_with_a_flipped_byte_are_named(folder: Folder) -> None:
    folder.write(JOBS[2], Outcome(OUTCOME.rows, {"p": np.arange(300.0)}), 1.0)
    file = folder.path / "jobs" / f"{JOBS[2].key}.npz"
    content = bytearray(file.read_bytes())
    content[120] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"\.npz is damaged"):
        folder.results(STUDY)


# the commit


def commit_of(monkeypatch: pytest.MonkeyPatch, file: Path) -> str:
    monkeypatch.setattr(module, "__file__", str(file))
    return module._commit()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a package of two rooms, one commit."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    for room in ("study", "layers"):
        (tmp_path / "package" / room).mkdir(parents=True)
        (tmp_path / "package" / room / "code.py").write_text("1\n")
    (tmp_path / "notes.md").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    git(tmp_path, *who, "commit", "-q", "-m", "first")
    return tmp_path


def git(path: Path, *arguments: str) -> str:
    command = ["git", "-C", str(path), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_the_package_was_changed(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = clone / "package" / "study" / "code.py"
    head = git(clone, "rev-parse", "--short=10", "HEAD")
    assert commit_of(monkeypatch, code) == head
    (clone / "notes.md").write_text("2\n")  # not of the package
    assert commit_of(monkeypatch, code) == head
    (clone / "package" / "layers" / "code.py").write_text("2\n")
    assert commit_of(monkeypatch, code) == head + "+"


def test_a_release_inside_another_clone_has_not_its_commit(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = clone / "venv" / "study"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("1\n")
    assert commit_of(monkeypatch, installed / "code.py") == "release"


def test_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._commit() == "release"


def test_the_environment(folder: Folder) -> None:
    environment = module.environment()
    assert environment["torch"] == torch.__version__
    assert environment["pyronorm"] == pn.__version__
    assert environment["cores"] == str(os.cpu_count())
