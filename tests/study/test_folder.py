"""The folder of a study: what counts as finished, what is refused, what comes back."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch

from pyronorm.errors import DataError, FileError, OptionError
from pyronorm.study import Folder, Job, Outcome, Row
from pyronorm.study.records import read_record, write_record
from tests.limits import files_no_larger_than
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
    assert not any(folder.finished(STUDY, job) for job in JOBS)
    folder.write(STUDY, JOBS[0], OUTCOME, 1.0)
    assert [folder.finished(STUDY, job) for job in JOBS] == [True, False, False, False]
    (folder.path / "jobs" / f"{JOBS[0].key}.json").unlink()
    assert not folder.finished(STUDY, JOBS[0])
    assert folder.results(STUDY).rows == []


def test_a_job_is_not_finished_before_all_its_files_are_there(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any of the renames, and at the first try or the second, nothing counts."""
    outcome = Outcome(OUTCOME.rows, {"p": np.ones(3)}, {"a/x": exported(np.ones((1, 3)))})
    replace = Path.replace

    class Stop(BaseException):
        pass

    for _ in range(2):
        for last in range(3):
            calls = 0

            def counted(self: Path, target: Path, last: int = last) -> Path:
                nonlocal calls
                calls += 1
                if calls > last:
                    raise Stop
                return replace(self, target)

            monkeypatch.setattr(Path, "replace", counted)
            with pytest.raises(Stop):
                folder.write(STUDY, JOBS[0], outcome, 1.0)
            assert not folder.finished(STUDY, JOBS[0])
            assert folder.results(STUDY).rows == []
        monkeypatch.undo()
        folder.write(STUDY, JOBS[0], outcome, 1.0)
        assert folder.finished(STUDY, JOBS[0])
    assert not list(folder.path.rglob("*.part"))


@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
def test_a_full_disk_is_one_clear_line_and_leaves_the_job_unfinished(
    folder: Folder, limit: int
) -> None:
    """Where the system refuses to write more; HDF5 would end the process."""
    generator = np.random.default_rng(0)
    outcome = Outcome(
        OUTCOME.rows,
        {"p": generator.normal(size=2_000)},
        {"a/x": exported(generator.normal(size=(2, 5_000)))},
    )
    with files_no_larger_than(limit), pytest.raises(FileError) as error:
        folder.write(STUDY, JOBS[0], outcome, 1.0)
    assert "cannot be written, File too large." in str(error.value)
    assert "\n" not in str(error.value)
    assert not folder.finished(STUDY, JOBS[0])
    folder.write(STUDY, JOBS[0], outcome, 1.0)
    assert folder.finished(STUDY, JOBS[0])


def test_arrays_of_an_earlier_try_do_not_count(folder: Folder) -> None:
    folder.write(STUDY, JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(3)}), 1.0)
    (folder.path / "jobs" / f"{JOBS[0].key}.json").unlink()
    folder.write(STUDY, JOBS[0], OUTCOME, 1.0)
    assert JOBS[0] not in folder.results(STUDY).arrays


# starting


def test_the_record(folder: Folder) -> None:
    record = strict_json(folder.path / "study.json")
    checksum = record.pop("checksum")
    assert len(checksum) == 64
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
    folder.write(STUDY, JOBS[0], OUTCOME, 1.0)
    Folder(folder.path).start(STUDY, "again")
    assert folder.finished(STUDY, JOBS[0])
    assert folder.record["command"] == "again"


def test_more_seeds_go_on(folder: Folder) -> None:
    folder.write(STUDY, JOBS[0], OUTCOME, 1.0)
    more = fake(seeds=(0, 3))
    folder.start(more, "more")
    assert [job for job in more.jobs() if folder.finished(STUDY, job)] == [Job("a/x", 3)]
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
    write_record(folder.path / "study.json", record)
    with pytest.raises(OptionError, match="size is not a setting there, None here"):
        folder.start(STUDY, "")


def test_force_removes_what_studies_write_and_nothing_else(folder: Folder) -> None:
    folder.write(STUDY, JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(3)}), 1.0)
    written = ("report.html", "report.md", "results.csv", "table-1.csv", "plots/nll.png")
    mine = ("notes.md", "data.json", "own.csv", "table.csv", "figures/mine.png")
    for name in written + mine:
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("x")
    other = fake(factor=2.0)
    folder.start(other, "", force=True)
    assert listing(folder.path) == sorted(("study.json", *mine))
    assert folder.record["fingerprint"] == other.fingerprint()
    assert not folder.finished(STUDY, JOBS[0])


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
        Folder(path).write(STUDY, JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(2)}), 1.0)
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

    for name in ("unlink", "replace", "mkdir"):
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
    write_record(folder.path / "study.json", record)
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
        folder.write(STUDY, job, Outcome(rows[job]), 1.5 + job.seed)
    results = folder.results(STUDY)
    assert list(results.rows) == [row for job in JOBS for row in rows[job]]
    assert results.seconds == {job: 1.5 + job.seed for job in JOBS}
    assert results.failures == {}
    assert set(map(str, results.environments)) == set(map(str, results.seconds))
    for there in results.environments.values():
        assert there["commit"] == folder.record["environment"]["commit"]


def test_jobs_of_other_seeds_are_left_out(folder: Folder) -> None:
    folder.write(STUDY, JOBS[0], OUTCOME, 1.0)
    folder.start(fake(seeds=(1,)), "")
    assert folder.results(fake(seeds=(1,))).rows == []
    assert len(folder.results(STUDY).rows) == 1


def test_values_that_are_not_finite(folder: Folder) -> None:
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "tiny": 5e-324, "int": 3}
    row = Row("a/x", 3, values, {"n": math.inf, "m": -math.inf, "text": "nan", "k": 0.1})
    folder.write(STUDY, JOBS[0], Outcome([row]), 1.0)
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
    folder.write(STUDY, JOBS[0], Outcome([Row("a/x", 3, values, condition)]), 1.0)
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
    folder.write(STUDY, JOBS[0], Outcome(OUTCOME.rows, arrays), 1.0)
    back = folder.results(STUDY).arrays
    assert list(back) == [JOBS[0]]
    assert list(back[JOBS[0]]) == list(arrays)
    for name, array in arrays.items():
        assert back[JOBS[0]][name].dtype == array.dtype
        np.testing.assert_array_equal(back[JOBS[0]][name], array)


def test_arrays_of_objects_are_refused(folder: Folder) -> None:
    arrays = {"p": np.ones(2), "texts": np.array([None, "x"], dtype=object)}
    with pytest.raises(DataError, match="'texts' holds Python objects"):
        folder.write(STUDY, JOBS[0], Outcome(OUTCOME.rows, arrays), 1.0)
    assert not folder.finished(STUDY, JOBS[0])


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
        folder.write(STUDY, job, Outcome(OUTCOME.rows, {}, made[job]), 1.0)
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
    assert not folder.finished(STUDY, JOBS[1])
    note = (folder.path / "jobs" / f"{JOBS[1].key}.error.txt").read_text(encoding="utf-8")
    assert note.endswith("Traceback\n  deep")
    folder.write(STUDY, JOBS[1], OUTCOME, 1.0)
    assert folder.results(STUDY).failures == {}
    assert not folder.failed(JOBS[1])


def test_a_failure_with_nothing_to_say(folder: Folder) -> None:
    (folder.path / "jobs" / f"{JOBS[1].key}.error.txt").write_text("")
    assert folder.results(STUDY).failures == {JOBS[1]: "for a reason unknown"}


def test_a_failure_with_text_that_is_no_unicode(folder: Folder) -> None:
    folder.fail(JOBS[1], "OSError: caf\udce9", "\udce9")
    assert "caf" in folder.results(STUDY).failures[JOBS[1]]


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "longer":
        file.write_bytes(content + b" \n")
    else:
        place = content.index(b"seconds") + 12 if file.suffix == ".json" else len(content) // 2
        changed = bytes([content[place] ^ 1])
        file.write_bytes(content[:place] + changed + content[place + 1 :])


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "one bit", "longer"])
@pytest.mark.parametrize("suffix", ["json", "npz", "nc"])
def test_a_damaged_file_is_named_and_its_job_run_anew(
    folder: Folder, suffix: str, how: str
) -> None:
    outcome = Outcome(
        OUTCOME.rows, {"p": np.arange(300.0)}, {"a/x": exported(np.arange(300.0)[None])}
    )
    for job in (JOBS[1], JOBS[2]):
        folder.write(STUDY, job, outcome, 1.0)
    (file,) = [f for f in folder.path.rglob(f"{JOBS[2].key}*") if f.suffix == f".{suffix}"]
    damage(file, how)
    assert folder.finished(STUDY, JOBS[1])
    if (suffix, how) == ("json", "longer"):  # space is nothing that JSON says
        assert folder.finished(STUDY, JOBS[2])
        return
    assert not folder.finished(STUDY, JOBS[2])
    if (suffix, how) != ("json", "missing"):  # then it has not been run
        with pytest.raises(DataError) as error:
            folder.results(STUDY)
        assert str(file) in str(error.value)
        assert f"run the study again, it then runs {JOBS[2]} anew" in str(error.value)
    folder.write(STUDY, JOBS[2], outcome, 1.0)
    assert folder.finished(STUDY, JOBS[2])
    assert len(folder.results(STUDY).rows) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 3},
        {"rows": [{"method": "a"}]},
        {"seconds": "x"},
        {"environment": []},
        {"note": None},
        {"files": {"../../outside.npz": "0" * 64}},
        {"arviz": ["never written"]},
    ],
    ids=str,
)
def test_a_record_that_says_something_else_is_named(folder: Folder, change: dict) -> None:
    folder.write(STUDY, JOBS[2], OUTCOME, 1.0)
    file = folder.path / "jobs" / f"{JOBS[2].key}.json"
    write_record(file, {**read_record(file, ""), **change})
    with pytest.raises(DataError, match="is damaged") as error:
        folder.results(STUDY)
    assert str(file) in str(error.value)
    assert not folder.finished(STUDY, JOBS[2])


def test_a_method_changed_by_hand_is_named(folder: Folder) -> None:
    folder.write(STUDY, JOBS[2], OUTCOME, 1.0)
    file = folder.path / "jobs" / f"{JOBS[2].key}.json"
    file.write_text(file.read_text().replace('"a/x"', '"no/such"'))
    with pytest.raises(DataError, match="its checksum is not that of its content"):
        folder.results(STUDY)


def test_results_of_another_configuration_never_count(folder: Folder) -> None:
    """Whatever way they came here."""
    other = fake(seeds=(3, 1), factor=2.0)
    folder.write(other, JOBS[0], OUTCOME, 1.0)
    assert not folder.finished(STUDY, JOBS[0])
    with pytest.raises(DataError, match=f"of configuration {other.fingerprint()}, the study's is"):
        folder.results(STUDY)


@pytest.mark.parametrize("part", ["jobs", "arviz"])
def test_force_removes_a_link_and_not_what_it_leads_to(tmp_path: Path, part: str) -> None:
    theirs = Folder(tmp_path / "theirs")
    theirs.start(STUDY, "")
    theirs.write(STUDY, JOBS[0], Outcome(OUTCOME.rows, {"p": np.ones(3)}), 1.0)
    mine = Folder(str(tmp_path / "mine"))
    mine.start(STUDY, "")
    (mine.path / part).rmdir()
    (mine.path / part).symlink_to(theirs.path / part)
    other = fake(factor=2.0)
    mine.start(other, "", force=True)
    assert not (mine.path / part).is_symlink()
    assert not any(mine.finished(other, job) for job in JOBS)
    assert theirs.finished(STUDY, JOBS[0])


def test_one_run_at_a_time(folder: Folder) -> None:
    folder.write(STUDY, JOBS[0], OUTCOME, 1.0)
    with folder.run(STUDY, "first"):
        for force in (False, True):
            with (
                pytest.raises(OptionError, match=f"another run works in .*: process {os.getpid()}"),
                Folder(folder.path).run(STUDY, "second", force),
            ):
                pass
        assert folder.finished(STUDY, JOBS[0])
        assert folder.record["command"] == "first"
    with folder.run(STUDY, "third", force=True):
        assert not folder.finished(STUDY, JOBS[0])
