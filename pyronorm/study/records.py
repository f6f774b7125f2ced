"""JSON files of a study: whole, unchanged, and with every number that Python has."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyronorm.errors import DataError
from pyronorm.files import write_file

__all__ = ["read_record", "write_record"]

_CHECKSUM = "checksum"


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write an object as JSON, with a checksum of what it says.

    JSON has no NaN and no infinity: they are null, and a string. NumPy's numbers become Python's.

    Raises:
        FileError: if it cannot be written.
    """
    plain = _finite(record)
    text = json.dumps({**plain, _CHECKSUM: _checksum(plain)}, indent=1, allow_nan=False)
    write_file(file, text + "\n")


def read_record(file: Path, remedy: str) -> dict[str, Any]:
    """Read a file of :func:`write_record`.

    Args:
        file: the file.
        remedy: what to do about one that is damaged, for errors.

    Raises:
        DataError: if it cannot be read, is damaged, or has been changed.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): {remedy}.") from None
    except (ValueError, RecursionError) as error:  # neither text nor JSON
        raise DataError(f"{file} cannot be read as JSON ({error}): {remedy}.") from None
    if not isinstance(record, dict):
        raise DataError(f"{file} is damaged, it has no JSON object: {remedy}.")
    checksum = record.pop(_CHECKSUM, None)
    if checksum is None:
        raise DataError(f"{file} is damaged or of an older version, it has no checksum: {remedy}.")
    if checksum != _checksum(record):
        raise DataError(
            f"{file} is damaged or was changed, its checksum is not that of its content: {remedy}."
        )
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
