"""The folder of a study: what it is, and what each finished job found."""

from __future__ import annotations

import hashlib
import io
import math
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pyronorm.checks import checked
from pyronorm.diagnostics.arviz_versions import netcdf
from pyronorm.errors import DataError, OptionError
from pyronorm.files import (
    BESIDE,
    StrPath,
    digest_of,
    file_error,
    make_folder,
    only_run,
    remove_leftovers,
    write_file,
)
from pyronorm.study.environment import environment
from pyronorm.study.records import read_record, write_record
from pyronorm.study.study import Job, Outcome, Results, Study, file_name
from pyronorm.study.table import Row

__all__ = ["Folder"]

_RECORD = {"study": str, "settings": dict, "fingerprint": str, "command": str, "environment": dict}
_REPORT = ("report.html", "report.md", "results.csv", "table-*.csv")
_PARTS = ("jobs", "arviz", "plots", "chains")


class Folder:
    """Files of a study: ``study.json``, and for each job ``jobs/KEY.json`` with its rows.

    Every file is written to the side and moved into place. A job's JSON file is written last. It holds
    the fingerprint of the study's configuration, the checksums of the job's other files, and its own:
    a job is finished if and only if all of them are there as they were written, for this
    configuration; any other is run anew. Its arrays lie in ``jobs/KEY.npz``, its ArviZ data in
    ``arviz/KEY-NAME.nc``, the traceback of a failure in ``jobs/KEY.error.txt``.

    Args:
        path: the folder.
    """

    @checked
    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._jobs = self.path / "jobs"

    @property
    def record(self) -> dict[str, Any]:
        """What ``study.json`` says: study, settings, fingerprint, command, environment.

        Raises:
            DataError: if there is none, or it cannot be read.
        """
        file = self.path / "study.json"
        if not file.is_file():
            raise DataError(
                f"{self.path} has no study.json: it is not the folder of a study. "
                "`pyronorm study NAME` makes one."
            )
        remedy = "choose another folder, or run the study anew with --force"
        record = read_record(file, remedy)
        for key, kind in _RECORD.items():
            if not isinstance(record.get(key), kind):
                raise DataError(f"{file} is damaged, it has no {key}: {remedy}.")
        return record

    @contextmanager
    def run(self, study: Study, command: str, force: bool = False) -> Iterator[None]:
        """Context of the only run of a study in the folder; :meth:`start` is its beginning.

        Raises:
            OptionError: if the folder has results of another configuration or other files, or another
                run works in it.
            FileError: if the folder cannot be written.
        """
        self._refuse(study, force)
        make_folder(self.path)
        with only_run(self.path, study.name):
            self.start(study, command, force)
            yield

    def start(self, study: Study, command: str, force: bool = False) -> None:
        """Make the folder, or go on in one that an earlier run of the same configuration left.

        Args:
            study: the study to run.
            command: what is run, for the report.
            force: remove what an earlier run left.

        Raises:
            OptionError: if the folder has results of another configuration, or other files.
            FileError: if the folder cannot be written.
        """
        self._refuse(study, force)
        make_folder(self.path)
        remove_leftovers(self.path)
        if force and (self.path / "study.json").exists():
            self._clear()
        record = {
            **study.configuration(),
            "fingerprint": study.fingerprint(),
            "command": command,
            "environment": environment(),
        }
        # The record comes first: what has it can be gone on with.
        write_record(self.path / "study.json", record)
        for part in ("jobs", "arviz"):
            remove_leftovers(make_folder(self.path / part))

    def _refuse(self, study: Study, force: bool) -> None:
        """Refuse a folder of another configuration, and one that is none of a study."""
        if self.path.exists() and not self.path.is_dir():
            raise OptionError(f"{self.path} is a file; choose another --output.")
        there = {f.name for f in self.path.iterdir()} if self.path.is_dir() else set()
        if "study.json" in there:
            if not force and self.record["fingerprint"] != study.fingerprint():
                raise OptionError(
                    f"{self.path} has results of another configuration: "
                    f"{_difference(self.record, study.configuration())}. "
                    "Choose another --output, or remove them with --force."
                )
        # A run that was killed at its very start leaves its lock, and the record's first part.
        elif {name for name in there - BESIDE if not name.startswith(".study.json.")}:
            raise OptionError(
                f"{self.path} has files and no study.json; choose another --output, or an empty folder."
            )

    def _clear(self) -> None:
        """Remove what studies write; study.json stays, to be replaced.

        A link is removed, and what it leads to is not: it may be another study's.
        """
        parts = [self.path / part for part in _PARTS]
        files = [file for pattern in _REPORT for file in self.path.glob(pattern)]
        for place in parts + files:
            try:
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink(missing_ok=True)
            except OSError as error:
                raise file_error(place, error) from error

    def finished(self, study: Study, job: Job) -> bool:
        """Whether the job's results are there, whole, and of this configuration."""
        if not self._record(job).is_file():
            return False
        try:
            self._verified(study, job)
        except DataError:
            return False
        return True

    def seconds(self, job: Job) -> float:
        """How long a finished job took; 0 for others."""
        path = self._record(job)
        return float(read_record(path, _again(job))["seconds"]) if path.is_file() else 0.0

    def write(self, study: Study, job: Job, outcome: Outcome, seconds: float) -> None:
        """Keep what a job found.

        Raises:
            DataError: if an array holds Python objects.
            FileError: if a file cannot be written.
        """
        content: dict[Path, bytes] = {}
        if outcome.arrays:
            for name, array in outcome.arrays.items():
                if np.asarray(array).dtype.hasobject:
                    raise DataError(f"{job}: array {name!r} holds Python objects, not numbers.")
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **dict[str, Any](outcome.arrays))
            content[self._arrays(job)] = buffer.getvalue()
        for name, idata in outcome.idatas.items():
            content[self._arviz(job, name)] = netcdf(idata)
        record = {
            "job": job.name,
            "seed": job.seed,
            "fingerprint": study.fingerprint(),
            "seconds": seconds,
            "environment": environment(),
            "note": outcome.note,
            "arviz": list(outcome.idatas),
            "files": {
                file.relative_to(self.path).as_posix(): hashlib.sha256(value).hexdigest()
                for file, value in content.items()
            },
            "rows": [
                {
                    "method": row.method,
                    "condition": dict(row.condition),
                    "values": {name: float(value) for name, value in row.values.items()},
                }
                for row in outcome.rows
            ],
        }
        # Of an earlier try, whose files are about to change.
        self._remove(self._record(job), self._arrays(job))
        for file, value in content.items():
            write_file(file, value)
        write_record(self._record(job), record)
        self._remove(self._error(job))

    def fail(self, job: Job, reason: str, traceback: str = "") -> None:
        """Note that a job failed, in one line and at length; it is tried again the next time.

        Raises:
            FileError: if the note cannot be written.
        """
        self._remove(self._record(job))  # of an earlier try
        text = " ".join(reason.split()) + "\n\n" + traceback
        write_file(self._error(job), text.encode(errors="backslashreplace"))

    def failed(self, job: Job) -> bool:
        """Whether a failure of the job is noted."""
        return self._error(job).is_file()

    def failure(self, job: Job) -> str | None:
        """What the job failed with, in one line; None if no failure is noted."""
        if not self.failed(job):
            return None
        text = self._error(job).read_text(encoding="utf-8", errors="replace")
        return text.partition("\n")[0] or "for a reason unknown"

    def results(self, study: Study) -> Results:
        """What the finished jobs of a study found.

        Raises:
            DataError: if a file of theirs is damaged, missing, or of another configuration.
        """
        rows: list[Row] = []
        arrays, arviz, seconds, failures = {}, {}, {}, {}
        environments: dict[Job, dict[str, str]] = {}
        notes: dict[Job, str] = {}
        for job in study.jobs():
            if not self._record(job).is_file():
                failure = self.failure(job)
                if failure is not None:
                    failures[job] = failure
                continue
            record = self._verified(study, job)
            rows += _rows(record, job)
            seconds[job] = float(record["seconds"])
            environments[job] = dict(record["environment"])
            if record["note"]:
                notes[job] = str(record["note"])
            arviz[job] = {name: self._arviz(job, name) for name in record["arviz"]}
            npz = self._arrays(job)
            if npz.relative_to(self.path).as_posix() in record["files"]:
                try:
                    with npz.open("rb") as opened, np.load(opened, allow_pickle=False) as there:
                        arrays[job] = dict(there)
                except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise DataError(f"{npz} is damaged ({error}): {_again(job)}.") from None
        return Results(rows, arrays, arviz, seconds, failures, environments, notes)

    def _verified(self, study: Study, job: Job) -> dict[str, Any]:
        """The record of a finished job, if it and the files that it names are as they were written."""
        file = self._record(job)
        record = read_record(file, _again(job))
        there = record.get("fingerprint")
        if there != study.fingerprint():
            raise DataError(
                f"{file} is of configuration {there}, the study's is {study.fingerprint()}: "
                f"{_again(job)}."
            )
        try:
            _rows(record, job)
            float(record["seconds"])
            dict(record["environment"].items())
            files = {self.path / name: digest for name, digest in record["files"].items()}
            named = {self._arviz(job, name) for name in record["arviz"]}
            if record["note"] is None or not named <= files.keys() <= {*named, self._arrays(job)}:
                raise ValueError("its files are not those of the job")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file} is damaged ({error!r}): {_again(job)}.") from None
        for one, digest in files.items():
            try:
                whole = digest_of(one) == digest
            except OSError as error:
                raise DataError(
                    f"{one} cannot be read ({error.strerror}): {_again(job)}."
                ) from None
            if not whole:
                raise DataError(
                    f"{one} is damaged or of another run, its checksum is not the one in {file.name}: "
                    f"{_again(job)}."
                )
        return record

    def _remove(self, *files: Path) -> None:
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise file_error(file, error) from error

    def _record(self, job: Job) -> Path:
        return self._jobs / f"{job.key}.json"

    def _arrays(self, job: Job) -> Path:
        return self._jobs / f"{job.key}.npz"

    def _error(self, job: Job) -> Path:
        return self._jobs / f"{job.key}.error.txt"

    def _arviz(self, job: Job, name: str) -> Path:
        return self.path / "arviz" / f"{job.key}-{file_name(name)}.nc"


def _again(job: Job) -> str:
    return f"run the study again, it then runs {job} anew"


def _rows(record: Mapping[str, Any], job: Job) -> list[Row]:
    return [
        Row(r["method"], job.seed, _numbers(r["values"]), _conditions(r["condition"]))
        for r in record["rows"]
    ]


def _difference(there: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    if there["study"] != mine["study"]:
        return f"the study is {there['study']} there, {mine['study']} here"
    old, new = _flat(there["settings"]), _flat(mine["settings"])
    nothing = "not a setting"
    return ", ".join(
        f"{name} is {old.get(name, nothing)} there, {new.get(name, nothing)} here"
        for name in {**old, **new}
        if name != "seeds" and old.get(name, nothing) != new.get(name, nothing)
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of settings by their full names, as ``training.epochs``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _conditions(values: Mapping[str, Any]) -> dict[str, Any]:
    infinite = ("inf", "-inf")
    return {name: float(value) if value in infinite else value for name, value in values.items()}
