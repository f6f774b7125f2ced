from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.conversion import convert
from pyronorm.errors import ConversionError, OptionError, ShapeError
from pyronorm.latents import LatentLayer, LatentSpace
from pyronorm.normalizers import Group
from tests.nets import conv_net


@pytest.fixture
def space() -> LatentSpace:
    return LatentSpace((LatentLayer("a.bn", 2, "Batch"), LatentLayer("b", 3, "Group")))


def test_reads_names_channels_and_kinds_off_a_network():
    network = nn.ModuleDict({"net": conv_net(2), "head": nn.GroupNorm(1, 2)})
    space = LatentSpace.of(convert(network))
    assert space.names == ("net.1", "net.4", "head")
    assert space.sizes == (4, 6, 2)
    assert [x.normalizer for x in space.layers] == ["Batch", "Batch", "Group"]
    assert space.num_channels == 12


def test_does_not_depend_on_the_normalizer_but_for_its_name():
    batch, group = (LatentSpace.of(convert(conv_net(2), n)) for n in (None, Group(2)))
    assert (batch.names, batch.sizes) == (group.names, group.sizes)


def test_labels(space):
    assert space.channel_labels == ("a.bn[0]", "a.bn[1]", "b[0]", "b[1]", "b[2]")
    assert space.channel_layers == ("a.bn", "a.bn", "b", "b", "b")


def test_sites_carry_the_prefix():
    space = LatentSpace((LatentLayer("a", 2, "Batch"),), prefix="decoder.")
    assert (space.shift_site, space.scale_site) == ("decoder.shift", "decoder.scale")


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_pack_is_the_inverse_of_unpack(space, batch):
    vector = torch.randn(*batch, 5)
    parts = space.unpack(vector)
    assert torch.equal(parts["a.bn"], vector[..., :2])
    assert torch.equal(parts["b"], vector[..., 2:])
    assert torch.equal(space.pack(dict(reversed(parts.items()))), vector)


def test_errors(space):
    with pytest.raises(ShapeError, match=r"unpack: expected 5 channels .* got .*\(4, 6\)"):
        space.unpack(torch.zeros(4, 6))
    with pytest.raises(ShapeError, match=r"expected the layers \['a\.bn', 'b'\], got \['b'\]"):
        space.pack({"b": torch.zeros(3)})
    with pytest.raises(ShapeError, match=r"b has 3 channels, got a tensor of shape \(4,\)"):
        space.pack({"a.bn": torch.zeros(2), "b": torch.zeros(4)})
    with pytest.raises(OptionError, match="must be unique"):
        LatentSpace((LatentLayer("a", 2, "Batch"), LatentLayer("a", 3, "Batch")))
    with pytest.raises(ConversionError, match=r"Linear has no layer .* pyronorm\.convert"):
        LatentSpace.of(nn.Linear(2, 2))


def test_space_of_a_plain_network():
    empty = LatentSpace((), "a.")
    assert (empty.num_channels, empty.channel_labels, empty.shift_site) == (0, (), "a.shift")
    empty.check(torch.zeros(4, 0), "here")
    with pytest.raises(ShapeError, match=r"here: expected 0 channels .* got .*\(4, 1\)"):
        empty.check(torch.zeros(4, 1), "here")
