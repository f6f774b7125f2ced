"""Residual networks: parameter counts of the literature, and blocks by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyronorm.errors import OptionError
from pyronorm.networks import CifarResNet, ResNet18

from .cases import num_parameters


def test_number_of_parameters() -> None:
    assert num_parameters(ResNet18(1000, cifar_stem=False)) == 11_689_512
    assert num_parameters(ResNet18()) == 11_173_962
    assert num_parameters(CifarResNet()) == 269_722  # 0.27 M in the paper
    assert num_parameters(CifarResNet(32)) == 464_154  # 0.46 M
    assert num_parameters(CifarResNet(110)) == pytest.approx(1.7e6, rel=0.02)


def test_sizes_of_the_stages() -> None:
    x = torch.randn(2, 3, 64, 64)
    assert ResNet18(width=2).blocks(torch.randn(2, 2, 32, 32)).shape == (2, 16, 4, 4)
    network = ResNet18(width=2, cifar_stem=False)
    assert network.pool(network.conv1(x)).shape == (2, 2, 16, 16)
    assert CifarResNet(14, width=2).blocks(torch.randn(2, 2, 32, 32)).shape == (2, 8, 8, 8)


def test_block_by_hand() -> None:
    network = CifarResNet(8, width=2, norm=None).double()
    block = network.blocks[1]  # from 2 to 4 channels, stride 2
    x = torch.randn(3, 2, 7, 6, dtype=torch.float64)
    y = F.conv2d(x, block.conv1.weight, block.conv1.bias, 2, 1).clamp(min=0)
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias, 1, 1)
    y[:, 1:3] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), y.clamp(min=0))


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(OptionError, match=rf"depth must be 6 n \+ 2 .* got {depth}"):
        CifarResNet(depth)
