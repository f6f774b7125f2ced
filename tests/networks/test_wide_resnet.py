"""Wide residual networks: parameter counts of the literature."""

from __future__ import annotations

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import ConversionError, OptionError
from pyronorm.networks import WideResNet

from .cases import num_parameters, trained


def test_number_of_parameters() -> None:
    with torch.device("meta"):
        assert num_parameters(WideResNet()) == 36_479_194  # 36.5 M in the paper
        assert num_parameters(WideResNet(16, 4)) == 2_748_890  # 2.7 M
        assert num_parameters(WideResNet(40, 4)) == pytest.approx(8.9e6, rel=0.01)


def test_shortcuts() -> None:
    first, *others = WideResNet(16, 1).blocks
    assert first.shortcut is None  # 16 channels to 16
    assert [b.shortcut is None for b in others] == [True, False, True, False, True]
    block = others[1].double()
    block.norm1, block.norm2 = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(2, 16, 6, 8, dtype=torch.float64)
    expected = block.shortcut(x.relu()) + block.conv2(block.conv1(x.relu()).relu())
    torch.testing.assert_close(block(x), expected)


def test_weight_normalization_of_all_layers_is_refused() -> None:
    network, x = trained("wide_resnet")
    with pytest.raises(ConversionError, match="not fed directly by a linear or convolution"):
        pn.convert(network, pn.normalizers.Weight(), example_input=x)


@pytest.mark.parametrize(("depth", "factor"), [(4, 1), (20, 1)])
def test_other_sizes_are_refused(depth: int, factor: int) -> None:
    with pytest.raises(OptionError, match=f"got {depth} and {factor}"):
        WideResNet(depth, factor)
