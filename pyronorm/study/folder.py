"""The folder of a study: what it is, and what each finished job found."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyronorm.errors import DataError, OptionError
from pyronorm.study.study import Job, Outcome, Results, Study, file_name
from pyronorm.study.table import Row

__all__ = ["Folder", "environment"]

_PACKAGES = ("pyronorm", "torch", "pyro-ppl", "arviz", "numpy")
_RECORD = {"study": str, "settings": dict, "fingerprint": str, "command": str, "environment": dict}
_REPORT = ("report.html", "report.md", "results.csv", "table-*.csv")


class Folder:
    """Files of a study: ``study.json``, and for each job ``jobs/KEY.json`` with its rows.

    A job's JSON file is written last and moved into place, so a job is finished if and only if the
    file is there; whatever was killed before leaves nothing that counts. Its arrays lie in
    ``jobs/KEY.npz``, its ArviZ data in ``arviz/KEY-NAME.nc``, the traceback of a failure in
    ``jobs/KEY.error.txt``.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._jobs = path / "jobs"

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
        record = _read_json(file, remedy)
        for key, kind in _RECORD.items():
            if not isinstance(record.get(key), kind):
                raise DataError(f"{file} is damaged, it has no {key}: {remedy}.")
        return record

    def start(self, study: Study, command: str, force: bool = False) -> None:
        """Make the folder, or go on in one that an earlier run of the same configuration left.

        Args:
            study: the study to run.
            command: what is run, for the report.
            force: remove what an earlier run left.

        Raises:
            OptionError: if the folder has results of another configuration, or other files.
        """
        mine = study.configuration()
        if self.path.exists() and not self.path.is_dir():
            raise OptionError(f"{self.path} is a file; choose another --output.")
        # A run that was killed at its very start leaves the record's first part alone.
        there = {f.name for f in self.path.iterdir()} if self.path.is_dir() else set()
        if "study.json" in there:
            if force:
                self._clear()
            elif self.record["fingerprint"] != study.fingerprint():
                raise OptionError(
                    f"{self.path} has results of another configuration: "
                    f"{_difference(self.record, mine)}. "
                    "Choose another --output, or remove them with --force."
                )
        elif there - {"study.json.part"}:
            raise OptionError(
                f"{self.path} has files and no study.json; choose another --output, or an empty folder."
            )
        record = {
            **mine,
            "fingerprint": study.fingerprint(),
            "command": command,
            "environment": environment(),
        }
        # The record comes first: what has it can be gone on with.
        self.path.mkdir(parents=True, exist_ok=True)
        _write_json(self.path / "study.json", record)
        self._jobs.mkdir(exist_ok=True)
        (self.path / "arviz").mkdir(exist_ok=True)

    def _clear(self) -> None:
        """Remove what studies write; study.json stays, to be replaced."""
        for part in ("jobs", "arviz", "plots"):
            shutil.rmtree(self.path / part, ignore_errors=True)
        for pattern in _REPORT:
            for file in self.path.glob(pattern):
                file.unlink()

    def finished(self, job: Job) -> bool:
        """Whether the job's results are there."""
        return (self._jobs / f"{job.key}.json").is_file()

    def write(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """Keep what a job found.

        Raises:
            DataError: if an array holds Python objects.
        """
        npz = self._jobs / f"{job.key}.npz"
        npz.unlink(missing_ok=True)  # of an earlier try
        if outcome.arrays:
            for name, array in outcome.arrays.items():
                if np.asarray(array).dtype.hasobject:
                    raise DataError(f"{job}: array {name!r} holds Python objects, not numbers.")
            part = npz.with_name(npz.name + ".part")
            with part.open("wb") as file:
                np.savez_compressed(file, **dict[str, Any](outcome.arrays))
            part.replace(npz)
        for name, idata in outcome.idatas.items():
            idata.to_netcdf(str(self._arviz(job, name)))
        record = {
            "job": job.name,
            "seed": job.seed,
            "seconds": seconds,
            "environment": environment(),
            "note": outcome.note,
            "arviz": list(outcome.idatas),
            "rows": [
                {
                    "method": row.method,
                    "condition": dict(row.condition),
                    "values": {name: float(value) for name, value in row.values.items()},
                }
                for row in outcome.rows
            ],
        }
        _write_json(self._jobs / f"{job.key}.json", record)
        self._error(job).unlink(missing_ok=True)

    def fail(self, job: Job, reason: str, traceback: str = "") -> None:
        """Note that a job failed, in one line and at length; it is tried again the next time."""
        text = " ".join(reason.split()) + "\n\n" + traceback
        self._error(job).write_text(text, encoding="utf-8", errors="backslashreplace")

    def failed(self, job: Job) -> bool:
        """Whether a failure of the job is noted."""
        return self._error(job).is_file()

    def results(self, study: Study) -> Results:
        """What the finished jobs of a study found.

        Raises:
            DataError: if a file of theirs is damaged.
        """
        rows: list[Row] = []
        arrays, arviz, seconds, failures = {}, {}, {}, {}
        environments: dict[Job, dict[str, str]] = {}
        notes: dict[Job, str] = {}
        for job in study.jobs():
            file = self._jobs / f"{job.key}.json"
            if not file.is_file():
                if self.failed(job):
                    text = self._error(job).read_text(encoding="utf-8", errors="replace")
                    failures[job] = text.partition("\n")[0] or "for a reason unknown"
                continue
            again = f"remove it, and run the study again: it then runs {job} anew"
            record = _read_json(file, again)
            try:
                rows += [
                    Row(r["method"], job.seed, _numbers(r["values"]), _conditions(r["condition"]))
                    for r in record["rows"]
                ]
                seconds[job] = float(record["seconds"])
                environments[job] = dict(record["environment"])
                if record["note"]:
                    notes[job] = record["note"]
                arviz[job] = {name: self._arviz(job, name) for name in record["arviz"]}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{file} is damaged ({error!r}): {again}.") from None
            npz = self._jobs / f"{job.key}.npz"
            if npz.is_file():
                try:
                    with npz.open("rb") as opened, np.load(opened, allow_pickle=False) as there:
                        arrays[job] = dict(there)
                except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise DataError(
                        f"{npz} is damaged ({error}): remove it with {file.name}, and run the study "
                        f"again: it then runs {job} anew."
                    ) from None
        return Results(rows, arrays, arviz, seconds, failures, environments, notes)

    def _error(self, job: Job) -> Path:
        return self._jobs / f"{job.key}.error.txt"

    def _arviz(self, job: Job, name: str) -> Path:
        return self.path / "arviz" / f"{job.key}-{file_name(name)}.nc"


def environment() -> dict[str, str]:
    """Versions, machine and commit that results come from."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "torch": torch.__version__,  # with its build
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **gpu,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the source that runs, with a ``+`` if it has been changed; else the release."""
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    options = {"capture_output": True, "text": True, "timeout": 10}
    try:
        # Installed inside another project's clone, this file is none of its files.
        mine = subprocess.run([*git, "ls-files", "--error-unmatch", file.name], **options)  # type: ignore[call-overload]
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], **options)  # type: ignore[call-overload]
        changed = subprocess.run([*git, "status", "--porcelain", "--", ".."], **options)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "release"
    if mine.returncode or head.returncode or changed.returncode:
        return "release"
    return str(head.stdout.strip()) + ("+" if changed.stdout.strip() else "")


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


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # neither text nor JSON
        raise DataError(f"{file} cannot be read as JSON ({error}): {remedy}.") from None
    if not isinstance(record, dict):
        raise DataError(f"{file} is damaged, it has no JSON object: {remedy}.")
    return record


def _write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write and move into place: the file is whole or not there."""
    part = file.with_name(file.name + ".part")
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, and a string. NumPy's numbers become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _conditions(values: Mapping[str, Any]) -> dict[str, Any]:
    infinite = ("inf", "-inf")
    return {name: float(value) if value in infinite else value for name, value in values.items()}
