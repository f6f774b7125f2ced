from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.conversion import convert
from pyronorm.conversion.surroundings import Surroundings
from pyronorm.errors import ConversionError
from pyronorm.normalizers import Weight
from tests.nets import ResNet, conv_net, mlp


def test_finds_the_layer_before_each_normalization():
    network = mlp()
    surroundings = Surroundings(network, network, ["1", "4"], torch.randn(3, 5))
    first, second = network[0], network[3]
    assert surroundings.take_linear("1") == ("0", first)
    assert surroundings.take_linear("4") == ("3", second)
    assert surroundings.taken == [first, second]
    assert isinstance(network[0], nn.Identity)
    network = ResNet()
    names = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    surroundings = Surroundings(network, copy.deepcopy(network), names, torch.randn(2, 3, 9, 8))
    found = {name: surroundings.take_linear(name)[0] for name in names}
    expected = {n: n.replace("bn", "conv").replace("sample.1", "sample.0") for n in names}
    assert found == expected


def test_the_network_is_left_as_it_was():
    network = conv_net(2).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    new = copy.deepcopy(network)
    Surroundings(network, new, ["1"], torch.randn(2, 2, 5, 6)).take_linear("1")
    assert network.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class Net(nn.Module):
    """One linear layer and one normalization, wired as a test wants."""

    def __init__(self, wire) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)
        self.wire = wire

    def forward(self, x):
        return self.wire(self, x)


CANNOT = {
    "no linear layer": (lambda n, x: n.norm(x), "is not fed directly"),
    "activation between": (lambda n, x: n.norm(F.relu(n.linear(x))), "is not fed directly"),
    "output used elsewhere": (
        lambda n, x: (y := n.linear(x)) + n.norm(y),
        "'linear', whose output is used elsewhere",
    ),
    "norm called twice": (lambda n, x: n.norm(n.norm(n.linear(x))), "is called 2 times"),
    "norm not called": (lambda n, x: n.linear(x), "is called 0 times"),
    "linear called twice": (
        lambda n, x: n.norm(n.linear(n.linear(x))),
        "'linear', which is called 2 times",
    ),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_it_cannot_follow_is_named(case):
    wire, message = CANNOT[case]
    with pytest.raises(ConversionError, match=f"layer 'norm' .*{message}"):
        convert(Net(wire), Weight(), example_input=torch.randn(3, 5))


def test_hooks_on_the_linear_layer_are_refused():
    network = Net(lambda n, x: n.norm(n.linear(x)))
    network.linear.register_forward_hook(lambda m, args, y: None)
    with pytest.raises(ConversionError, match="'linear', which has hooks"):
        convert(network, Weight(), example_input=torch.randn(3, 5))


def test_looking_at_a_shape_is_no_use():
    network = Net(lambda n, x: n.norm(y := n.linear(x)).view(y.shape[0], y.size(1)))
    surroundings = Surroundings(network, network, ["norm"], torch.randn(3, 5))
    assert surroundings.take_linear("norm")[0] == "linear"


def test_a_linear_layer_registered_twice_is_replaced_at_both_places():
    network = Net(lambda n, x: n.norm(n.alias(x)))
    network.alias = network.linear
    x = torch.randn(3, 5)
    converted = convert(network, Weight(), example_input=x)
    assert isinstance(converted.linear, nn.Identity)
    assert converted.alias is converted.linear
    v = network.linear.weight
    torch.testing.assert_close(converted(x), x @ (v / v.norm(dim=1, keepdim=True)).T)
