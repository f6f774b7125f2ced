"""Fully connected networks against the same computation by hand."""

from __future__ import annotations

import pytest
import torch

from pyronorm.errors import OptionError
from pyronorm.networks import MLP

from .cases import num_parameters


def test_output() -> None:
    network = MLP(4, 2, (5, 3), norm=None).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    first, second = network.layers[0], network.layers[4]
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(network(x), hidden @ network.fc.weight.T + network.fc.bias)


def test_number_of_parameters_of_the_uci_protocol() -> None:
    assert num_parameters(MLP(13, norm=None)) == 14 * 50 + 51 * 50 + 51
    assert num_parameters(MLP(13)) == 13 * 50 + 100 + 50 * 50 + 100 + 51


def test_no_hidden_layer_is_a_linear_map() -> None:
    network = MLP(4, 2, ())
    x = torch.randn(3, 4)
    torch.testing.assert_close(network(x), x @ network.fc.weight.T + network.fc.bias)


@pytest.mark.parametrize("sizes", [(0, 1, (5,)), (3, 0, (5,)), (3, 1, (5, 0))])
def test_sizes_must_be_positive(sizes: tuple[int, int, tuple[int, ...]]) -> None:
    with pytest.raises(OptionError, match="must be .*at least 1, an integer"):
        MLP(*sizes)
