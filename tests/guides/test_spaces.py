"""A guide and a model of another network."""

from __future__ import annotations

import pytest
from torch import nn

import pyronorm as pn
from pyronorm.errors import ShapeError
from pyronorm.guides.spaces import refuse_other_space


def space(*channels: int) -> pn.LatentSpace:
    layers = (nn.BatchNorm1d(number) for number in channels)
    return pn.LatentNetwork(pn.convert(nn.Sequential(*layers))).space


def test_the_same_layers_pass() -> None:
    refuse_other_space("guides.Point", space(4, 4), space(4, 4))


@pytest.mark.parametrize("other", [(4,), (4, 5), (5, 4), (4, 4, 4)])
def test_other_layers_and_sizes_are_named(other: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"guides\.Point: .* has the layers \{'0': 4, '1': 4\}"):
        refuse_other_space("guides.Point", space(4, 4), space(*other))
