"""All-CNN-C: parameter counts of the literature, and the paper's shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.errors import OptionError
from pyronorm.networks import AllCNN

from .cases import num_parameters


def test_number_of_parameters() -> None:
    assert num_parameters(AllCNN(norm=None)) == 1_369_738
    assert num_parameters(AllCNN(100, norm=None)) == 1_387_108
    assert num_parameters(AllCNN(norm=None, width=0.125)) == 22_042


def test_sizes_of_the_paper() -> None:
    network = AllCNN(width=1 / 32)
    sizes = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, x, y: sizes.append(tuple(y.shape[1:])))
    network(torch.randn(2, 3, 32, 32))
    expected = [(3, 32)] * 2 + [(3, 16)] + [(6, 16)] * 2 + [(6, 8)] + [(6, 6)] * 2
    assert sizes == [(channels, size, size) for channels, size in expected]


def test_averaging_before_the_last_convolution_is_averaging_after_it() -> None:
    network = AllCNN(4, 2, None, width=1 / 32).double()
    x = torch.randn(3, 2, 12, 14, dtype=torch.float64)
    weight = network.fc.weight[:, :, None, None]
    expected = nn.functional.conv2d(network.layers(x), weight, network.fc.bias).mean((2, 3))
    torch.testing.assert_close(network(x), expected)


def test_dropout_of_the_paper() -> None:
    network = AllCNN(dropout=0.5, input_dropout=0.2, width=1 / 32)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]


def test_no_channel_is_refused() -> None:
    with pytest.raises(OptionError, match=r"width=0\.001 leaves no channel"):
        AllCNN(width=0.001)
