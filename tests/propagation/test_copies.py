from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.errors import ConversionError
from pyronorm.propagation.copies import copied

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"
)


@pytest.mark.parametrize("old_style", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_are_computed_at_each_call(old_style):
    torch.manual_seed(0)
    network = nn.Sequential(old_style(nn.Linear(3, 4)), nn.ReLU()).eval()
    x = torch.randn(5, 3)
    expected = network(x)  # leaves a weight that was computed from parameters
    new = copied(network)
    assert torch.equal(new(x), expected)
    assert list(new.state_dict()) == list(network.state_dict())
    new(x).square().sum().backward()
    assert all(p.grad is not None for p in new.parameters())
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    assert torch.equal(network(x), expected)
    assert not torch.equal(new(x), expected)


def test_other_tensors_that_were_computed_from_parameters_are_named():
    network = nn.Sequential(nn.Linear(3, 4))
    network[0].kept = network[0].weight * 2
    with pytest.raises(ConversionError, match=r"layer '0' \(Linear\) cannot be copied: its 'kept'"):
        copied(network)


def test_each_part_keeps_its_mode_in_graphs_too():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    network[1].eval()
    assert [m.training for m in copied(network).modules()] == [True, True, False]
    assert not any(m.training for m in copied(torch.fx.symbolic_trace(network.eval())).modules())
