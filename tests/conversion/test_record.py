"""What was asked of convert can be asked again."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pyronorm import convert
from pyronorm.conversion.record import Conversion, conversions_of
from pyronorm.normalizers import Group, Layer


def make():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)
    )


def test_each_conversion_is_noted_in_its_order():
    assert conversions_of(make()) == ()
    example = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    first = convert(make().double(), Layer(), only="1", example_input=example)
    both = convert(first, Group(3), skip=["1"])
    assert [c.normalizer for c in conversions_of(both)] == [Layer(), Group(3)]
    assert conversions_of(both)[0].options["only"] == ["1"]
    assert conversions_of(both)[1].options["skip"] == ["1"]
    assert len(conversions_of(first)) == 1
    assert conversions_of(copy.deepcopy(both)) == conversions_of(both)


def test_an_example_of_the_same_form():
    example = torch.ones(2, 5, dtype=torch.long)
    again = Conversion.of(None, example).example_input()
    assert (again.shape, again.dtype) == (example.shape, example.dtype)
    assert Conversion.of(None, None).example_input() is None


def test_examples_of_several_tensors():
    example = (torch.ones(2, 5), {"ids": torch.ones(2, dtype=torch.long)}, [torch.ones(3)])
    again = Conversion.of(None, example).example_input(torch.zeros(0, dtype=torch.bfloat16))
    assert [type(part) for part in again] == [torch.Tensor, dict, list]
    assert (again[0].shape, again[0].dtype) == ((2, 5), torch.bfloat16)
    assert again[1]["ids"].dtype == torch.long
    assert again[2][0].shape == (3,)
