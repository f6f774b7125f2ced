"""The IDX format of MNIST: a big-endian header, then one array."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pyronorm.datasets.files import read_verified
from pyronorm.errors import DataError
from pyronorm.files import StrPath

__all__ = ["read_idx"]

_GZIP = b"\x1f\x8b"
_TYPES = {
    0x08: "unsigned byte",
    0x09: "signed byte",
    0x0B: "short",
    0x0C: "int",
    0x0D: "float",
    0x0E: "double",
}


def read_idx(path: StrPath, md5: str | None = None) -> UInt8[Tensor, "*shape"]:
    """Read an array of unsigned bytes from an IDX file, gzipped or not.

    The file is two zero bytes, a byte for the type (8: unsigned byte), a byte for the number of
    axes, a big-endian 32-bit length per axis, and the values, last axis fastest.

    Args:
        path: the file.
        md5: its published checksum (of the file as it is, so of the gzipped one); None for none.

    Raises:
        DataError: if the checksum is wrong, the magic number is not that of an IDX file of unsigned
            bytes, or the file is longer or shorter than its header says.

    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits" (file formats).
    """
    path = Path(path)
    content = read_verified(path, md5)
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file: {error}") from error
    if len(content) < 4:
        raise DataError(f"{path}: truncated: {len(content)} bytes hold no IDX header.")
    zero, kind, axes = struct.unpack_from(">HBB", content)
    if zero != 0 or kind not in _TYPES:
        raise DataError(
            f"{path}: wrong magic number {content[:4].hex()}: expected 0000, 08 for unsigned bytes "
            "and the number of axes, as in an IDX file."
        )
    if kind != 0x08:
        raise DataError(f"{path}: expected an IDX file of unsigned bytes, found {_TYPES[kind]}.")
    start = 4 + 4 * axes
    if axes == 0 or len(content) < start:
        raise DataError(f"{path}: truncated: the header announces {axes} axes and ends early.")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    expected, found = math.prod(shape), len(content) - start
    if expected != found:
        what = "truncated" if found < expected else "bytes after the end"
        size = "×".join(map(str, shape))
        raise DataError(
            f"{path}: {what}: the header says {size} = {expected:,} values, the file holds {found:,}."
        )
    # A copy: tensors over read-only memory are not allowed.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
