"""Where files of data sets lie, whether they are the published ones, and how to get them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyronorm.errors import DataError, MissingDataError, OptionError
from pyronorm.files import StrPath

__all__ = [
    "DATA_ROOT_VARIABLE",
    "PublishedFile",
    "fetch",
    "find_data_root",
    "find_folder",
    "missing",
    "read_verified",
    "verify",
]

DATA_ROOT_VARIABLE = "PYRONORM_DATA"
"""Environment variable that names the folder of all data sets."""


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors publish it.

    Attributes:
        name: the file's name.
        md5: its published MD5 checksum; None where none is published.
        url: where it can be downloaded; None where it comes only inside an archive.
    """

    name: str
    md5: str | None = None
    url: str | None = None


def find_data_root(given: StrPath | None, what: str, *, make: bool = False) -> Path:
    """The folder of all data sets: ``given``, else the environment variable's.

    Args:
        given: the folder, or None for that of :data:`DATA_ROOT_VARIABLE`.
        what: the data set, for errors.
        make: make the folder where it does not exist.

    Raises:
        MissingDataError: if neither is given, or the folder does not exist.
    """
    origin = "data_root"
    if given is None:
        given, origin = (
            os.environ.get(DATA_ROOT_VARIABLE),
            f"environment variable {DATA_ROOT_VARIABLE}",
        )
    if not given:
        raise MissingDataError(
            f"{what}: where are the data? Pass data_root=, or set the environment variable "
            f"{DATA_ROOT_VARIABLE}, to the folder that holds the data sets' folders."
        )
    root = Path(given).expanduser()
    if make:
        root.mkdir(parents=True, exist_ok=True)
    if not root.is_dir():
        raise MissingDataError(f"{what}: {root} ({origin}) is not a folder.")
    return root


def find_folder(root: Path, folders: Sequence[str], names: Sequence[str]) -> Path | None:
    """The first of ``folders`` under ``root`` that holds a file of one of these ``names``."""
    for folder in folders:
        if any((root / folder / name).is_file() for name in names):
            return root / folder
    return None


def missing(
    what: str, name: str, looked_in: Sequence[Path], source: str, *, can_download: bool = True
) -> MissingDataError:
    """The error for a file that is not there: its name, where it was looked for, where to get it."""
    places = ", ".join(str(place) for place in looked_in)
    hint = ", or pass download=True" if can_download else ""
    return MissingDataError(f"{what}: no file {name} in {places}. Get it from {source}{hint}.")


def verify(path: Path, md5: str | None) -> None:
    """Check a file against its published MD5 checksum, where there is one, without keeping it.

    Raises:
        DataError: if the checksum is another one.
    """
    if md5 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(
            f"{path}: damaged, or not the published file: expected MD5 {md5}, found {found} "
            f"({path.stat().st_size:,} bytes). Delete it and get it again."
        )


def read_verified(path: Path, md5: str | None) -> bytes:
    """Read a file that :func:`verify` finds right."""
    verify(path, md5)
    return path.read_bytes()


def fetch(file: PublishedFile, folder: Path, *, progress: bool = True) -> Path:
    """Download a file, with a progress bar, and check its checksum before it gets its name.

    A file that is there already with the right checksum is left alone.

    Args:
        file: what to download.
        folder: where to; made where it does not exist.
        progress: show the progress bar.

    Raises:
        OptionError: if pooch is not installed.
        DataError: if the file cannot be had, or its checksum is another one.
    """
    try:
        import pooch
    except ImportError as error:
        raise OptionError(
            "download=True needs pooch: pip install 'pyronorm[download]', or place the files yourself."
        ) from error
    from requests.exceptions import RequestException

    if file.url is None or file.md5 is None:
        raise OptionError(f"{file.name}: cannot be downloaded; place it in {folder} yourself.")
    try:
        pooch.retrieve(
            file.url,
            known_hash=f"md5:{file.md5}",
            fname=file.name,
            path=folder,
            progressbar=progress,
        )
    except (RequestException, OSError, ValueError) as error:
        raise DataError(f"{file.name}: no download from {file.url}: {error}") from error
    return folder / file.name
