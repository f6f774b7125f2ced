"""Dictionaries with the target among their entries become pairs."""

from __future__ import annotations

import pytest
import torch

from pyronorm.errors import DataError
from pyronorm.infer.targets import with_target

BATCHES = [{"x": torch.ones(2), "mask": torch.zeros(2), "y": torch.arange(2) + k} for k in (0, 5)]


def test_pairs_pass_after_pass():
    pairs = with_target(BATCHES, "y")
    assert len(pairs) == 2
    for _ in range(2):
        found = list(pairs)
        assert [list(x) for x, _ in found] == [["x", "mask"]] * 2
        assert [y.tolist() for _, y in found] == [[0, 1], [5, 6]]
    assert "y" in BATCHES[0]  # which stay as they are


@pytest.mark.parametrize(
    ("batches", "came"),
    [(BATCHES, r"keys \['x', 'mask', 'y'\]"), ([torch.ones(2)], "Tensor"), ([(1, 2)], "tuple")],
)
def test_what_has_no_such_key_is_refused(batches, came):
    with pytest.raises(
        DataError, match=f"expected batches with the key or attribute 'labels', got {came}"
    ):
        list(with_target(batches, "labels"))
