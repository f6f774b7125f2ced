"""What its layers compute is in tests/conversion/test_own_statistics.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm import convert
from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers import Group, Original


def test_any_layer_without_running_statistics_is_its_own_original():
    layer = nn.GroupNorm(2, 4)
    nn.init.normal_(layer.weight)
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(convert(layer, Original())(x), layer(x))


def test_running_statistics_are_refused():
    with pytest.raises(ConversionError, match=r"'0' \(BatchNorm1d\) keeps running statistics"):
        convert(nn.Sequential(nn.BatchNorm1d(4)), Original())


def test_the_arguments_of_a_call_are_no_settings():
    layer = convert(nn.GroupNorm(2, 4), Original())
    given = layer.normalizer.given(layer, (torch.ones(3),), {"size": 3})
    assert given == Original()
    assert repr(given) == "Original(eps=None)"
    assert (given.kwargs, len(given.args)) == ({"size": 3}, 1)
    with pytest.raises(OptionError, match="takes an input alone, got 1"):
        Group(2).given(layer, (1,), {})
