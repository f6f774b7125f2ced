"""VGG-11: parameter counts of the literature."""

from __future__ import annotations

import pytest
from torch import nn

from pyronorm.errors import OptionError
from pyronorm.networks import VGG11

from .cases import num_parameters


def test_number_of_parameters() -> None:
    network = VGG11(norm=None)
    # Convolutions of the published network: 132,863,336 without its three linear layers.
    linear = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert num_parameters(network.layers) == 132_863_336 - linear
    assert num_parameters(network) == 9_225_610


def test_one_dropout_per_stage() -> None:
    network = VGG11(dropout=0.3, width=1 / 16)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3] * 5


def test_no_channel_is_refused() -> None:
    with pytest.raises(OptionError, match="leaves no channel"):
        VGG11(width=0.001)
