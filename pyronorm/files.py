"""Files that are whole or not there, folders of one run at a time, and names fit for a terminal."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyronorm.errors import FileError, OptionError

__all__ = [
    "BESIDE",
    "StrPath",
    "digest_of",
    "file_error",
    "make_folder",
    "only_run",
    "remove_leftovers",
    "visible",
    "write_file",
]

StrPath = str | os.PathLike[str]

_PART = ".part"
_LOCK = ".lock"
_OWNER = "running.txt"

BESIDE = frozenset({_LOCK, _OWNER})
"""Names of the files that :func:`only_run` puts into a folder."""


def write_file(path: StrPath, content: str | bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file to the side, to the disk, and into its place.

    At any moment there is the whole new file, the whole old one, or none. A symbolic link at the path
    is replaced, not followed.

    Args:
        path: where to; the folder has to exist.
        content: text in UTF-8, bytes, or parts one after the other.

    Raises:
        FileError: if it cannot be written; what was there is as it was.
    """
    place = Path(path)
    if "\0" in place.name:
        raise FileError(f"{place}: cannot be written, its name has a null character.")
    try:
        is_folder = not place.name or place.is_dir()
    except OSError as error:  # a name that is too long
        raise file_error(place, error) from error
    if is_folder:
        raise FileError(f"{place}: is a folder; give the path of a file.")
    if isinstance(content, str):
        content = content.encode()
    parts = (content,) if isinstance(content, bytes) else content
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}{_PART}")
    try:
        try:
            with aside.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(place)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        _sync_folder(place.parent)
    except OSError as error:
        raise file_error(place, error) from error


def remove_leftovers(folder: StrPath) -> None:
    """Remove what runs that were killed while they wrote have left; for whoever alone writes there."""
    for part in Path(folder).glob(".*." + "[0-9a-f]" * 8 + _PART):
        with suppress(OSError):
            part.unlink()


def make_folder(path: StrPath) -> Path:
    """Make a folder, and those above it, where they are not there.

    Raises:
        FileError: if that is not possible.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise file_error(folder, error) from error
    return folder


def digest_of(path: StrPath) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: if it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_error(path: StrPath, error: OSError | ValueError) -> FileError:
    """The error for a file that cannot be written, in one line."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return FileError(f"{os.fspath(path)}: cannot be written, {reason}.")


@contextmanager
def only_run(folder: StrPath, what: str) -> Iterator[None]:
    """Context of the only run that works in a folder.

    The operating system holds the lock and lets it go when the process ends, however hard, so that
    what a killed run leaves never stands in the way. A file ``running.txt`` beside it says who works
    there.

    Args:
        folder: the folder, which exists.
        what: what works there, for errors.

    Raises:
        OptionError: if another run works in the folder; the message says which process.
        FileError: if the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    owner = Path(folder) / _OWNER
    lock = FileLock(Path(folder) / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OptionError(
            f"{what}: another run works in {os.fspath(folder)}{_who(owner)}. Wait for its end, stop it, "
            "or choose another folder."
        ) from None
    except OSError as error:
        raise file_error(folder, error) from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        write_file(owner, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def visible(text: object) -> str:
    r"""Text without what would command a terminal: control characters become ``\x1b``, ``\n``, ...

    So do characters that reverse the direction of writing, and those that no encoding has.
    """
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escaped(c)
        for c in str(text)
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", errors="backslashreplace").decode()


def _who(owner: Path) -> str:
    try:
        return f": {visible(owner.read_text(encoding='utf-8', errors='replace').strip())}"
    except OSError:  # between its lock and its name
        return ""


def _sync_folder(folder: Path) -> None:
    """The name is on the disk, too."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
