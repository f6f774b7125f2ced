"""Files in the official layouts, written byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np

CIFAR_PIXELS = 3072


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    header = struct.pack(">BBBB", 0, 0, kind, values.ndim)
    lengths = b"".join(struct.pack(">I", length) for length in values.shape)
    return header + lengths + bytes(values.astype(np.uint8).ravel().tolist())


def write(path: Path, content: bytes) -> str:
    """Write a file, gzipped if its name says so, and return its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def byte_images(num: int, seed: int = 0, size: int = CIFAR_PIXELS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size), dtype=np.uint8)


def cifar_binary(pixels: np.ndarray, *labels: list[int]) -> bytes:
    """Records: the label bytes, then the red, green and blue plane, row by row."""
    records = []
    for i, image in enumerate(pixels):
        records.append(bytes(row[i] for row in labels) + bytes(image.tolist()))
    return b"".join(records)


def python2_pickle(
    pixels: np.ndarray, labels: list[int], key: bytes = b"labels", *, fortran: bool = False
) -> bytes:
    """A batch as Python 2 and NumPy of 2009 pickled it (protocol 2), opcode by opcode."""
    content = pixels.tobytes("F" if fortran else "C")

    def text(value: bytes) -> bytes:  # SHORT_BINSTRING
        return b"U" + struct.pack("<B", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + struct.pack("<B", value) if value < 256 else b"M" + struct.pack("<H", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    )
    array += b"(K\x01" + number(len(pixels)) + number(pixels.shape[1]) + b"\x86" + dtype
    array += (
        (b"\x88" if fortran else b"\x89") + b"T" + struct.pack("<i", len(content)) + content + b"tb"
    )
    return (
        b"\x80\x02}("
        + (text(b"batch_label") + text(b"training batch 1 of 5"))
        + (text(key) + b"](" + b"".join(number(label) for label in labels) + b"e")
        + (text(b"data") + array)
        + (text(b"filenames") + b"](" + text(b"a_s_000001.png") + b"e")
        + b"u."
    )
