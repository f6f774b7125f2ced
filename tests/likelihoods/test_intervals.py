from __future__ import annotations

import pytest
import torch

from pyronorm.errors import ShapeError
from pyronorm.likelihoods import Intervals


def test_coverage_counts_ends_and_not_what_is_missing():
    intervals = Intervals(torch.zeros(5), -torch.ones(5), torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0]))
    y = torch.tensor([0.0, 1.0, 1.5, -1.0, torch.nan])
    assert intervals.coverage(y) == 3 / 4
    assert intervals.width.tolist() == [2, 2, 2, 3, 2]


def test_other_shapes_are_refused():
    intervals = Intervals(torch.zeros(4, 1), torch.zeros(4, 1), torch.ones(4, 1))
    with pytest.raises(ShapeError, match=r"must have the shape \(4, 1\), got \(4,\)"):
        intervals.coverage(torch.zeros(4))
