"""What a run has judged so far, kept in a folder, so that it is gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from pyronorm.diagnostics import Agreement
from pyronorm.errors import OptionError
from pyronorm.files import StrPath
from pyronorm.study import table
from pyronorm.study.folder import Folder
from pyronorm.study.reference.result import Row
from pyronorm.study.reference.settings import Settings
from pyronorm.study.study import Job, Outcome, Place, Results, Section, Study

__all__ = ["Keep", "keep_in"]

_FOLDER = "kept"
_IDATA = "idata"
_NUMBERS = ("nll", "pareto_k", "elbo", "elbo_error", "seconds", "cpu_seconds")
_OF_AGREEMENT = ("level", "correlation_error", "sliced_wasserstein")
_ARRAYS = ("mean_error", "sd_ratio", "coverage")


@dataclass(frozen=True)
class _Reference(Study):
    """The posteriors of a reference as jobs, for the files of a study."""

    title: ClassVar[str] = "Posteriors against NUTS"

    settings: Settings
    names: tuple[str, ...]
    name: str = "reference"

    def jobs(self) -> Sequence[Job]:
        return [Job(name, self.settings.seed) for name in self.names]

    def run(self, job: Job, place: Place) -> Outcome:
        raise OptionError("reference: its jobs share chains; run them by pyronorm reference.")

    def sections(self, results: Results) -> Sequence[Section]:
        return []

    def configuration(self) -> dict[str, Any]:
        settings = {**asdict(self.settings), "prior": repr(self.settings.prior), "seeds": []}
        return {"study": self.name, "settings": json.loads(json.dumps(settings))}


class Keep:
    """Judges what has not been judged yet.

    Args:
        study: what is judged.
        folder: where; None for nowhere.
    """

    def __init__(self, study: _Reference, folder: Folder | None) -> None:
        self._study = study
        self._folder = folder
        self.idatas: dict[str, Any] = {}

    @property
    def chains(self) -> Path | None:
        """Where NUTS keeps its chains."""
        return None if self._folder is None else self._folder.path / "chains"

    def __call__(self, name: str, judge: Callable[[], tuple[Row, Any]]) -> Row:
        """The row of a posterior, judged now if it is not there."""
        job = Job(name, self._study.settings.seed)
        if self._folder is None or not self._folder.finished(self._study, job):
            row, idata = judge()
            if self._folder is not None:
                self._folder.write(self._study, job, _outcome(row, idata), row.seconds)
        else:
            row, idata = self._read(job)
        if idata is not None:
            self.idatas[name] = idata
        return row

    def _read(self, job: Job) -> tuple[Row, Any]:
        import arviz as az

        assert self._folder is not None
        results = self._folder.results(_Reference(self._study.settings, (job.name,)))
        files = results.arviz[job]
        idata = az.from_netcdf(str(files[_IDATA])) if _IDATA in files else None  # type: ignore[no-untyped-call]
        (found,) = results.rows
        return _row(found, results.arrays[job]), None if idata is None else idata.load()


@contextmanager
def keep_in(
    folder: StrPath | None, settings: Settings, names: Sequence[str], command: str, force: bool
) -> Iterator[Keep]:
    """Context of the only run in a folder.

    Args:
        folder: the folder; None to keep nothing.
        settings: the problem; a folder of another one is refused.
        names: what is judged; others may have been before.
        command: what is run.
        force: remove what an earlier run left.

    Raises:
        OptionError: if the folder is of another problem, or in use.
        FileError: if it cannot be written.
    """
    study = _Reference(settings, tuple(names))
    if folder is None:
        yield Keep(study, None)
        return
    kept = Folder(Path(folder) / _FOLDER)
    with kept.run(study, command, force):
        yield Keep(study, kept)


def _outcome(row: Row, idata: Any) -> Outcome:
    found = row.agreement
    values = {name: float(getattr(row, name)) for name in _NUMBERS}
    values |= {name: float(getattr(found, name)) for name in _OF_AGREEMENT}
    arrays = {name: getattr(found, name).numpy() for name in _ARRAYS}
    return Outcome(
        [table.Row(row.name, 0, values)],
        {**arrays, "draws": row.draws.numpy()},
        {} if idata is None else {_IDATA: idata},
    )


def _row(found: table.Row, arrays: Any) -> Row:
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    parts: dict[str, Any] = {name: tensors[name] for name in _ARRAYS}
    parts |= {name: found.values[name] for name in _OF_AGREEMENT}
    numbers = {name: found.values[name] for name in _NUMBERS}
    return Row(found.method, Agreement(**parts), tensors["draws"], **numbers)
