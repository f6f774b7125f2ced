"""The IDX format of MNIST: a big-endian header, then one array."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.datasets.files import verify
from pyronorm.errors import DataError, MissingDataError
from pyronorm.files import StrPath

__all__ = ["read_idx"]

_GZIP = b"\x1f\x8b"
_CHUNK = 2**20
_TYPES = {
    0x08: "unsigned byte",
    0x09: "signed byte",
    0x0B: "short",
    0x0C: "int",
    0x0D: "float",
    0x0E: "double",
}


@checked
def read_idx(
    path: StrPath, md5: str | None = None, shape: Sequence[int] | None = None
) -> UInt8[Tensor, "*shape"]:
    """Read an array of unsigned bytes from an IDX file, gzipped or not.

    The file is two zero bytes, a byte for the type (8: unsigned byte), a byte for the number of
    axes, a big-endian 32-bit length per axis, and the values, last axis fastest. No more than the
    header says is read or unpacked.

    Args:
        path: the file.
        md5: its published checksum (of the file as it is, so of the gzipped one); None for none.
        shape: the shape that it has to have; None for any.

    Raises:
        DataError: if the checksum is wrong, the magic number is not that of an IDX file of unsigned
            bytes, the shape is another one, or the file is longer or shorter than its header says.

    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits" (file formats).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingDataError(f"read_idx: there is no file {path}.")
    verify(path, md5)
    with path.open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if not zipped:
            return _read(file, path, shape)
        try:
            with gzip.GzipFile(fileobj=file) as content:
                return _read(content, path, shape)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file: {error}") from error


def _read(
    file: BufferedIOBase, path: Path, wanted: Sequence[int] | None
) -> UInt8[Tensor, "*shape"]:
    head = _take(file, 4)
    if len(head) < 4:
        raise DataError(f"{path}: truncated: {len(head)} bytes hold no IDX header.")
    zero, kind, axes = struct.unpack(">HBB", head)
    if zero != 0 or kind not in _TYPES:
        raise DataError(
            f"{path}: wrong magic number {head.hex()}: expected 0000, 08 for unsigned bytes "
            "and the number of axes, as in an IDX file."
        )
    if kind != 0x08:
        raise DataError(f"{path}: expected an IDX file of unsigned bytes, found {_TYPES[kind]}.")
    lengths = _take(file, 4 * axes)
    if axes == 0 or len(lengths) < 4 * axes:
        raise DataError(f"{path}: truncated: the header announces {axes} axes and ends early.")
    shape = struct.unpack(f">{axes}I", lengths)
    if wanted is not None and shape != tuple(wanted):
        raise DataError(f"{path}: expected shape {tuple(wanted)}, found {shape}.")
    expected = math.prod(shape)
    values = _take(file, expected)
    longer = file.read(1)  # at the end gzip's own checksum is checked, too
    if longer or len(values) < expected:
        size = "×".join(map(str, shape))
        what, found = (
            ("bytes after the end", "more") if longer else ("truncated", f"{len(values):,}")
        )
        raise DataError(
            f"{path}: {what}: the header says {size} = {expected:,} values, the file holds {found}."
        )
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(shape))


def _take(file: BufferedIOBase, size: int) -> bytearray:
    """So many bytes or what there is; a header that exaggerates costs no memory."""
    found = bytearray()
    while len(found) < size:
        part = file.read(min(size - len(found), _CHUNK))
        if not part:
            break
        found += part
    return found
