"""Layer classes of a user's own: a few lines each, and they pass what the library's kinds pass."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyronorm as pn
from pyronorm.conversion import Kind, convert, register
from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers import Batch, Group, LatentNorm, Layer
from pyronorm.testing import NormalizerConformance


class Standardize(nn.LayerNorm):
    """A layer normalization under another name."""


register(Standardize, nn.LayerNorm)


class TestStandardize(NormalizerConformance):
    spatial_dims: ClassVar[tuple[int, ...]] = (0,)
    independent_channels: ClassVar[bool] = False

    def make(self, num_channels):
        return Layer()

    def original_layer(self, num_channels, dims, eps, affine):
        return Standardize(num_channels, eps, affine)

    def torch_layer(self, num_channels, dims):
        return Standardize(num_channels, eps=1e-2)


class NormAct(nn.BatchNorm2d):
    """Normalization, dropout and activation in one."""

    def __init__(self, channels, act=nn.ELU, drop=0.0, **options):
        super().__init__(channels, **options)
        self.drop, self.act = nn.Dropout(drop), act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


register(NormAct, nn.BatchNorm2d, then=["drop", "act"])


class TestNormAct(NormalizerConformance):
    spatial_dims: ClassVar[tuple[int, ...]] = (2,)

    def make(self, num_channels):
        return Batch()

    def original_layer(self, num_channels, dims, eps, affine):
        return NormAct(num_channels, eps=eps, affine=affine, momentum=None)

    def torch_layer(self, num_channels, dims):
        return NormAct(num_channels, eps=1e-2)

    def after(self, y):
        return F.elu(y)


class TestOwnKind(TestNormAct):
    """Converted without naming a normalizer."""

    def convert(self, network, example_input):
        return convert(network)


class Foreign(nn.Module):
    """A group normalization that has nothing of torch's, registered by a function."""

    def __init__(self, channels, groups):
        super().__init__()
        self.scale = groups
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), None

    def forward(self, x):
        return F.leaky_relu(F.group_norm(x, self.scale, self.weight, None, 1e-3), 0.3)


@pytest.fixture
def registered():
    @register(Foreign, then=[lambda y: F.leaky_relu(y, 0.3)])
    def describe(layer):
        return Kind(Group(layer.scale, eps=1e-3), len(layer.weight))

    return describe


@pytest.mark.usefixtures("registered")
def test_a_function_tells_what_a_layer_is():
    original = nn.Sequential(nn.Conv2d(3, 6, 3), Foreign(6, 2))
    x = torch.randn(4, 3, 7, 8)
    network = convert(original)
    assert network[1].normalizer == Group(2, eps=1e-3)
    assert list(network.state_dict()) == list(original.state_dict())
    torch.testing.assert_close(network(x), original(x))
    row = pn.conversion_report(network).converted[0]
    assert (row.original, row.normalizer) == ("Foreign", "Group")


@pytest.mark.usefixtures("registered")
def test_a_wrong_description_is_refused_with_the_difference():
    @register(Foreign)
    def wrong(layer):
        return Kind(Group(layer.scale, eps=1e-3), len(layer.weight))

    with pytest.raises(ConversionError, match=r"layer '0' \(Foreign\) is not Group.* differ by \d"):
        convert(nn.Sequential(Foreign(6, 2)))
    register(Foreign, lambda layer: Kind(Layer(eps=1e-3), 6, channel_last=True))
    with pytest.raises(ConversionError, match=r"is not Layer\(eps=0\.001"):
        convert(nn.Sequential(Foreign(6, 2)))


def test_what_belongs_to_the_layer_keeps_its_place_and_mode():
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 6, 3), NormAct(6, nn.PReLU, drop=0.5))
    original[1].drop.eval()
    network = convert(original)
    assert list(network.state_dict()) == list(original.state_dict())
    assert "1.act.weight" in network.state_dict()
    assert (network[1].training, network[1].drop.training) == (True, False)
    x = torch.randn(4, 3, 7, 8)
    torch.testing.assert_close(network(x), original(x))
    network[1].drop.train()
    pn.estimate_population_statistics(network, [x])  # dropout takes no part in it
    values = network[0](x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(network[1].running_mean, values.mean(1))
    # another normalizer keeps what follows, too
    grouped = convert(original, Group(2))
    assert grouped[1].then == ("drop", "act")
    shift, scale = torch.randn(6), torch.rand(6) + 0.5
    hat = F.group_norm(original[0](x), 2)
    expected = original[1].act(hat * scale[:, None, None] + (scale * shift)[:, None, None])
    found = pn.LatentNetwork(grouped.eval())(x, shift, scale)
    torch.testing.assert_close(found, expected)


def test_subclasses_are_not_meant():
    class Half(NormAct):
        def forward(self, x):
            return super().forward(x) / 2

    with pytest.raises(ConversionError, match=r"\(Half\)"):
        convert(nn.Sequential(Half(6)))
    assert isinstance(convert(nn.Sequential(NormAct(6)))[0], LatentNorm)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Standardize", nn.LayerNorm), "expected a class of layers, got 'Standardize'"),
        ((int, nn.LayerNorm), "expected a class of layers"),
        ((Foreign, nn.Linear), r"Foreign is to be like Linear, which is not registered.*LayerNorm"),
        ((Foreign, "Group"), "expected a function .* got 'Group'"),
    ],
)
def test_what_cannot_be_registered(arguments, message):
    with pytest.raises(OptionError, match=message):
        register(*arguments)
