"""Networks by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.datasets import ImageData, Split
from pyronorm.errors import OptionError
from pyronorm.study import NETWORKS, make_network

SIZES = {"lenet-5": 28, "lenet-5-8": 8}  # the others take any


def data(name: str, channels: int = 2, classes: int = 7) -> ImageData:
    size = SIZES.get(name, 32)
    part = Split(torch.randn(3, channels, size, size), torch.tensor([0, 6, 2]))
    return ImageData("made up", part, part, classes)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "wrn-28-10"])
def test_channels_and_classes_are_those_of_the_data(name: str) -> None:
    images = data(name)
    network = make_network(name, images)
    assert network(images.train.x).shape == (3, 7)
    assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def test_the_wide_network_is_wide() -> None:
    network = make_network("wrn-28-10", data("wrn-28-10", 3, 10))
    assert sum(p.numel() for p in network.parameters()) == 36_479_194


def test_options_reach_the_network() -> None:
    network = make_network("lenet-5", data("lenet-5"), norm=None, dropout=0.3)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_unknown_names() -> None:
    with pytest.raises(OptionError, match="no network 'lenet'; choose from small-conv, lenet-5"):
        make_network("lenet", data("lenet-5"))
