"""Files: tensors and JSON in one, without pickle, whole or refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyronorm.errors import FileError, OptionError
from pyronorm.files import write_file

__all__ = ["FORMAT", "read_archive", "write_archive"]

FORMAT = 1
"""Number of the format; files of a later one are refused."""

_KEY = "pyronorm"
_DIGEST = "sha256"
_BLANK = "0" * 64


def write_archive(
    path: str | os.PathLike[str],
    kind: str,
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write tensors and JSON to a safetensors file.

    The file is written beside its place, flushed to the disk and renamed, so that a file of that name
    is whole at any time. A checksum of every byte is a part of it.

    Args:
        path: where to.
        kind: what it is, ``"model"`` for instance; the reader asks for it.
        content: ready for JSON.
        tensors: by name.

    Raises:
        FileError: if the folder does not exist, or the disk is full.
        OptionError: if ``path`` is no path.
    """
    from safetensors.torch import save

    place = _place(path)
    header = {
        "format": FORMAT,
        "kind": kind,
        "versions": {"pyronorm": version("pyronorm"), "torch": str(torch.__version__)},
        "content": content,
    }
    # A copy each: safetensors refuses views that share memory.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(header, allow_nan=True, sort_keys=True)
    blob = save(plain, {_KEY: text, _DIGEST: _BLANK})
    digest = hashlib.sha256(blob).hexdigest()
    blob = blob.replace(_mark(_BLANK), _mark(digest), 1)
    write_file(place, blob)


def read_archive(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file of :func:`write_archive`.

    Args:
        path: the file.
        kind: what it has to be.

    Returns:
        What was given as ``content``, and the tensors, on the CPU.

    Raises:
        FileError: if there is no such file, it is damaged, of a later format, or of another kind.
        OptionError: if ``path`` is no path.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    place = _place(path)
    try:
        blob = place.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: of a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{place}: cannot be read, {reason}.") from error
    start = blob[:8]
    size = int.from_bytes(start, "little")
    try:
        metadata = json.loads(blob[8 : 8 + size])["__metadata__"]
        header, digest = json.loads(metadata[_KEY]), metadata[_DIGEST]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(
            f"{place}: is no file of pyronorm, or its head is damaged. Save it again."
        ) from error
    whole = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None
    if whole:
        blank = blob.replace(_mark(digest), _mark(_BLANK), 1)
        whole = hashlib.sha256(blank).hexdigest() == digest
    number = header.get("format") if isinstance(header, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise FileError(
            f"{place}: has the format {number}, this version of pyronorm ({version('pyronorm')}) knows "
            f"formats up to {FORMAT}. Install a later one: it was written by "
            f"{header.get('versions', {}).get('pyronorm', 'an unknown version')}."
        )
    if not whole:
        raise FileError(
            f"{place}: is damaged, its checksum is not that of its content. Take a copy, or save again."
        )
    if header["kind"] != kind:
        raise FileError(f"{place}: holds {header['kind']!r}, expected {kind!r}.")
    try:
        tensors = load(blob)
    except SafetensorError as error:  # pragma: no cover - the checksum was right
        raise FileError(f"{place}: is damaged, {error}.") from error
    return header["content"], tensors


def _place(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise OptionError(
            f"path: expected the name of a file, a string or a Path, got {type(path).__name__}."
        )
    return Path(path)


def _mark(digest: str) -> bytes:
    return f'"{_DIGEST}":"{digest}"'.encode()
