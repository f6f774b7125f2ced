"""Calls of layers that are not ordinary; for ranks see tests/conversion/test_ranks.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm import LatentNetwork, convert
from pyronorm.errors import OptionError, ShapeError
from pyronorm.normalizers import Group, LatentNorm, Layer


class Block(nn.Module):
    """A network that torch.fx can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6))

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return self.last(y + y.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_symbolic_traces_of_torch_fx(training, nested):
    torch.manual_seed(0)
    original, x = Block(), torch.randn(5, 3, 6, 6)
    original(x)
    network = convert(original.eval()).train(training)
    graph = torch.fx.symbolic_trace(nn.Sequential(network) if nested else network)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    start = "0." if nested else ""
    assert [f"{start}norm", f"{start}last.2"] == [c for c in calls if "norm" in c or ".2" in c]
    torch.testing.assert_close(graph(x), network(x))
    latent = LatentNetwork(graph)
    assert latent.space.sizes == (4, 6)
    shift, scale = torch.randn(7, 1, 10), torch.rand(7, 1, 10) + 0.5
    expected = LatentNetwork(network)(x, shift, scale)
    torch.testing.assert_close(latent(x, shift, scale), expected, rtol=1e-4, atol=1e-5)


def test_a_traced_network_can_be_converted():
    original, x = Block(), torch.randn(5, 3, 6, 6)
    original(x)
    graph = torch.fx.symbolic_trace(original.eval())
    network = convert(graph)
    assert [m.training for m in network.modules()] == [m.training for m in graph.modules()]
    assert torch.equal(network(x), original(x))
    assert list(network.state_dict()) == list(original.state_dict())


def test_features_between_layers():
    """As torchvision's create_feature_extractor takes them out of a traced network."""
    torch.manual_seed(0)
    original, x = Block(), torch.randn(5, 3, 6, 6)
    original(x)
    network = convert(original.eval())
    graph = torch.fx.symbolic_trace(network)
    (node,) = [n for n in graph.graph.nodes if n.target == "norm"]
    (output,) = [n for n in graph.graph.nodes if n.op == "output"]
    output.args = (node,)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    torch.testing.assert_close(graph(x), original.norm(original.conv(x)))
    assert LatentNetwork(graph).space.names == ("norm",)


@pytest.mark.parametrize("normalizer", [Layer(), Group(2)], ids=str)
def test_further_arguments_are_refused(normalizer):
    layer = LatentNorm(normalizer, 4)
    layer.name = "norm"
    with pytest.raises(OptionError, match="norm: .* takes an input alone, got 2 further arguments"):
        layer(torch.randn(3, 4, 2), None, size=2)


def test_the_channels_of_an_input():
    with pytest.raises(ShapeError, match="with 4 channels, got"):
        LatentNorm(Layer(), 4)(torch.randn(3, 5, 2))
