from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from pyronorm.datasets import read_idx
from pyronorm.errors import DataError
from tests.datasets.builders import idx, write

VALUES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
def test_reads_values_and_shape(tmp_path, name):
    md5 = write(tmp_path / name, idx(VALUES))
    for checksum in (None, md5):
        found = read_idx(tmp_path / name, checksum)
        assert found.dtype == torch.uint8
        assert np.array_equal(found.numpy(), VALUES)


def test_the_layout_of_the_format(tmp_path):
    """Bytes by hand: magic 0x00000801, length 5 big-endian, five labels."""
    (tmp_path / "labels").write_bytes(bytes.fromhex("00000801 00000005 07 02 01 00 ff"))
    assert read_idx(tmp_path / "labels").tolist() == [7, 2, 1, 0, 255]


def test_the_result_can_be_written_to(tmp_path):
    write(tmp_path / "f", idx(VALUES))
    found = read_idx(tmp_path / "f")
    found[0, 0, 0] = 9
    assert found[0, 0, 0] == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00", "truncated: 2 bytes"),
        (b"\x89PNG\r\n\x1a\n", "wrong magic number 89504e47"),
        (struct.pack(">HBB", 0, 0x07, 1) + bytes(4), "wrong magic number 00000701"),
        (struct.pack(">HBBI", 1, 8, 1, 4) + bytes(4), "wrong magic number 00010801"),
        (struct.pack(">HBBI", 0, 0x0D, 1, 1) + bytes(4), "unsigned bytes, found float"),
        (struct.pack(">HBB", 0, 8, 0), "truncated: the header announces 0 axes"),
        (struct.pack(">HBBI", 0, 8, 3, 2), "truncated: the header announces 3 axes"),
        (idx(VALUES)[:-1], "truncated: the header says 2×3×4 = 24 values, the file holds 23"),
        (idx(VALUES) + b"\0\0", "bytes after the end: .* 24 values, the file holds more"),
    ],
)
@pytest.mark.parametrize("name", ["bad", "bad.gz"])
def test_a_damaged_file_is_named_with_what_was_expected(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("count", "message"),
    [
        (10, "bytes after the end: the header says 10 = 10 values, the file holds more"),
        (2**32 - 1, "truncated: the header says .* values, the file holds 60,000,000"),
    ],
)
def test_no_more_is_read_than_the_header_says(tmp_path, zipped, count, message):
    """60 MB, or 58 kB zipped: what is not wanted costs no memory, nor does what is not there."""
    path = tmp_path / "f"
    content = struct.pack(">HBBI", 0, 8, 1, count) + bytes(60_000_000)
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    del content
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (5e6 if count == 10 else 140e6)


def test_another_shape_is_refused_before_the_values_are_read(tmp_path):
    path = tmp_path / "f"
    write(path, idx(VALUES))
    assert read_idx(path, shape=(2, 3, 4)).shape == (2, 3, 4)
    path.write_bytes(path.read_bytes()[:16])  # the header alone
    with pytest.raises(DataError, match=r"expected shape \(2, 12\), found \(2, 3, 4\)"):
        read_idx(str(path), shape=[2, 12])


def test_a_damaged_gzip_file(tmp_path):
    write(tmp_path / "f.gz", idx(VALUES))
    whole = (tmp_path / "f.gz").read_bytes()
    for damaged in (whole[:-9], whole[:-8] + bytes(8), whole[:12] + b"\xff\xff" + whole[14:]):
        (tmp_path / "f.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"f\.gz: damaged gzip file"):
            read_idx(tmp_path / "f.gz")


def test_a_wrong_checksum(tmp_path):
    found = write(tmp_path / "f", idx(VALUES))
    with pytest.raises(DataError, match=f"expected MD5 {'0' * 32}, found {found}"):
        read_idx(tmp_path / "f", "0" * 32)
