"""The folder of a study: what it is, and what each finished job found."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyronorm.errors import DataError, OptionError
from pyronorm.study.study import Job, Outcome, Results, Study
from pyronorm.study.table import Row

__all__ = ["Folder", "environment"]

_PACKAGES = ("pyronorm", "torch", "pyro-ppl", "arviz", "numpy")


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
        try:
            record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{file} cannot be read as JSON: {error}.") from None
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
        if (self.path / "study.json").is_file():
            record = self.record
            there = {"study": record.get("study"), "settings": record.get("settings", {})}
            if force:
                self._clear()
            elif record.get("fingerprint") != study.fingerprint():
                raise OptionError(
                    f"{self.path} has results of another configuration: {_difference(there, mine)}. "
                    "Choose another --output, or remove them with --force."
                )
        elif self.path.is_file():
            raise OptionError(f"{self.path} is a file; choose another --output.")
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise OptionError(
                f"{self.path} has files and no study.json; choose another --output, or an empty folder."
            )
        self._jobs.mkdir(parents=True, exist_ok=True)
        (self.path / "arviz").mkdir(exist_ok=True)
        record = {
            **mine,
            "fingerprint": study.fingerprint(),
            "command": command,
            "environment": environment(),
        }
        _write_json(self.path / "study.json", record)

    def _clear(self) -> None:
        for part in ("jobs", "arviz", "plots"):
            shutil.rmtree(self.path / part, ignore_errors=True)
        for file in self.path.iterdir():
            if file.name == "study.json" or file.suffix in (".csv", ".html", ".md", ".json"):
                file.unlink()

    def finished(self, job: Job) -> bool:
        """Whether the job's results are there."""
        return (self._jobs / f"{job.key}.json").is_file()

    def write(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """Keep what a job found."""
        if outcome.arrays:
            part = self._jobs / f"{job.key}.npz.part"
            with part.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **dict(outcome.arrays))
            part.replace(self._jobs / f"{job.key}.npz")
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
                {"method": row.method, "condition": dict(row.condition), "values": dict(row.values)}
                for row in outcome.rows
            ],
        }
        _write_json(self._jobs / f"{job.key}.json", record)
        self._error(job).unlink(missing_ok=True)

    def fail(self, job: Job, traceback: str) -> None:
        """Note that a job failed; it is tried again the next time."""
        self._error(job).write_text(traceback, encoding="utf-8")

    def results(self, study: Study) -> Results:
        """What the finished jobs of a study found."""
        rows: list[Row] = []
        arrays, arviz, seconds, failures = {}, {}, {}, {}
        commits, notes = set(), set()
        for job in study.jobs():
            file = self._jobs / f"{job.key}.json"
            if not file.is_file():
                if self._error(job).is_file():
                    lines = self._error(job).read_text(encoding="utf-8").strip().splitlines()
                    failures[job] = lines[-1] if lines else "no traceback"
                continue
            record = json.loads(file.read_text(encoding="utf-8"))
            rows += [
                Row(row["method"], job.seed, _numbers(row["values"]), row["condition"])
                for row in record["rows"]
            ]
            seconds[job] = record["seconds"]
            commits.add(record["environment"].get("commit", "unknown"))
            if record["note"]:
                notes.add(record["note"])
            arviz[job] = {name: self._arviz(job, name) for name in record["arviz"]}
            npz = self._jobs / f"{job.key}.npz"
            if npz.is_file():
                with np.load(npz, allow_pickle=False) as file_arrays:
                    arrays[job] = dict(file_arrays)
        return Results(rows, arrays, arviz, seconds, failures, frozenset(commits), frozenset(notes))

    def _error(self, job: Job) -> Path:
        return self._jobs / f"{job.key}.error.txt"

    def _arviz(self, job: Job, name: str) -> Path:
        return self.path / "arviz" / f"{Job(name, job.seed).key}.nc"


def environment() -> dict[str, str]:
    """Versions, machine and commit that results come from."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **gpu,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the source that runs, with a ``+`` if it has been changed; else the release."""
    source = Path(__file__).parent
    git = ["git", "-C", str(source)]
    options = {"capture_output": True, "text": True, "timeout": 10}
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], **options)  # type: ignore[call-overload]
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], **options)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "release"
    if head.returncode or changed.returncode:
        return "release"
    return str(head.stdout.strip()) + ("+" if changed.stdout.strip() else "")


def _difference(there: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    if there["study"] != mine["study"]:
        return f"the study is {there['study']} there, {mine['study']} here"
    old, new = there["settings"], mine["settings"]
    names = [k for k in {**old, **new} if k != "seeds" and old.get(k) != new.get(k)]
    return ", ".join(f"{k} is {old.get(k)} there, {new.get(k)} here" for k in names)


def _write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write and move into place: the file is whole or not there."""
    part = file.with_name(file.name + ".part")
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, and a string."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
