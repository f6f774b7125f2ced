from __future__ import annotations

import inspect
import math

import pytest
import torch

from pyronorm.errors import DataError
from pyronorm.latents.values import check_values


def test_possible_values():
    check_values("here", torch.tensor([0.0, -5.0]), torch.tensor([1e-30, 4.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_shifts_that_are_not_finite(bad):
    with pytest.raises(DataError, match="here: every shift must be finite, but 1 of 2 are not"):
        check_values("here", torch.tensor([0.0, bad]), torch.ones(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_scales_that_are_none(bad):
    with pytest.raises(DataError, match="every scale must be finite and above 0, but 2 of 3"):
        check_values("here", torch.zeros(3), torch.tensor([bad, 1.0, bad]))


def test_traced_calls_are_not_looked_at():
    plain = inspect.unwrap(check_values)  # torch 2.6 cannot trace run-time type checks

    def checked(scale):
        plain("here", torch.zeros(2), scale)
        return scale * 2

    scale = torch.tensor([[1.0, -1.0]])
    assert torch.equal(torch.func.vmap(checked)(scale), 2 * scale)
    compiled = torch.compile(checked, backend="eager", fullgraph=True)
    assert torch.equal(compiled(scale[0]), 2 * scale[0])
