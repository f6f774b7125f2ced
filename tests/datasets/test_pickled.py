from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pyronorm.datasets.pickled import read_pickled_bytes
from pyronorm.errors import DataError
from tests.datasets.builders import byte_images, python2_pickle


@pytest.mark.parametrize("fortran", [False, True])
def test_a_pickle_of_python_2(fortran):
    pixels = byte_images(300)
    labels = [int(label) for label in np.random.default_rng(1).integers(0, 10, 300)]
    found = read_pickled_bytes(python2_pickle(pixels, labels, fortran=fortran), "f")
    assert np.array_equal(found["data"], pixels)
    assert found["labels"] == labels
    assert found["filenames"] == [b"a_s_000001.png"]


@pytest.mark.parametrize("fortran", [False, True])
def test_the_bytes_written_here_are_those_that_pickle_reads(fortran):
    """The oracle: pickle itself reads the hand-written bytes as intended."""
    pixels = byte_images(3, size=5)
    content = python2_pickle(pixels, [4, 0, 9], fortran=fortran)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        content = content.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    found = pickle.loads(content, encoding="bytes")
    assert np.array_equal(found[b"data"], pixels)
    assert found[b"labels"] == [4, 0, 9]


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_pickle_of_python_3(protocol):
    pixels = byte_images(4)
    content = pickle.dumps({"data": pixels, "labels": [1, 2, 3, 0]}, protocol)
    found = read_pickled_bytes(content, "f")
    assert np.array_equal(found["data"], pixels)
    assert found["labels"] == [1, 2, 3, 0]


class _Touch:
    """A pickle of this makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(5))
def test_a_malicious_pickle_does_nothing(tmp_path, protocol):
    victim = tmp_path / "touched"
    content = pickle.dumps({"data": _Touch(victim)}, protocol)
    with pytest.raises(
        DataError, match=r"batch: not a pickle of arrays: it asks for posix\.system"
    ):
        read_pickled_bytes(content, "batch")
    assert not victim.exists()
    pickle.loads(content)  # it is malicious indeed
    assert victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"(S'1'\nibuiltins\neval\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"P1\n.",  # a persistent id
    ],
)
def test_nothing_else_is_looked_up(content):
    with pytest.raises(DataError, match="not a pickle of arrays"):
        read_pickled_bytes(content, "f")


def _dumps(value) -> bytes:
    return pickle.dumps(value, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f: not a pickle of arrays"),
        (python2_pickle(byte_images(2), [0, 1])[:-200], "truncated|exhausted|ran out"),
        (_dumps([1]), "it holds a list, not a dictionary"),
        (_dumps({"data": np.zeros((2, 3))}), "an array that is not of unsigned bytes"),
        (_dumps({"data": np.array([None])}), "an array that is not of unsigned bytes"),
        (b"}(U\x04datacnumpy.core.multiarray\n_reconstruct\n)Ru.", "not a pickle of arrays"),
        (b"}(U\x04datacnumpy\nndarray\n(K\x01tbu.", "not a pickle of arrays"),
    ],
)
def test_damaged_pickles(content, message):
    with pytest.raises(DataError, match=message):
        read_pickled_bytes(content, "f")
