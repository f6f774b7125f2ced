"""What a kind says of a layer is what the layer made of it computes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pyronorm.conversion.build import build
from pyronorm.conversion.kind import Kind
from pyronorm.errors import ShapeError
from pyronorm.normalizers import Layer


class Foreign(nn.Module):
    """A layer whose tensors have names of their own, with something behind it."""

    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.1]).double())
        self.b = nn.Parameter(torch.tensor([0.1, 0.2, -0.3, 0.0]).double())
        self.act = nn.Softplus()


def test_names_offsets_and_what_follows():
    old = Foreign()
    kind = Kind(
        Layer(eps=1e-3),
        4,
        channel_last=True,
        then=("act", torch.neg),
        weight="g",
        bias="b",
        weight_plus=1.0,
    )
    new = build("x", old, kind, None)
    x = torch.randn(3, 5, 4).double()
    mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    standard = (x - mean) / (var + 1e-3).sqrt()
    expected = -nn.functional.softplus((1 + old.g) * standard + old.b)
    torch.testing.assert_close(new(x), expected)
    assert new.state_dict().keys() == old.state_dict().keys()


@pytest.mark.parametrize(
    ("ranks", "unbatched", "good", "bad"),
    [
        ((3,), False, [(3, 4, 5)], [(3, 4), (3, 4, 5, 2)]),
        ((3,), True, [(3, 4, 5), (4, 5)], [(3, 4, 5, 2)]),
        ((2, 3), False, [(3, 4), (3, 4, 5)], [(3, 4, 5, 2)]),
        (None, False, [(3, 4), (3, 4, 5), (3, 4, 5, 2)], [(4,)]),
    ],
)
def test_ranks_of_inputs(ranks, unbatched, good, bad):
    kind = Kind(Layer(eps=1e-5), 4, ranks=ranks, unbatched=unbatched)
    new = build("x", nn.GroupNorm(1, 4), kind, None)
    for shape in good:
        assert new(torch.randn(shape)).shape == shape
    for shape in bad:
        with pytest.raises(ShapeError):
            new(torch.randn(shape))


def test_it_is_a_value():
    kind = Kind(Layer(), 4)
    assert kind == Kind(Layer(), 4)
    assert kind != dataclasses.replace(kind, weight_plus=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.num_channels = 5
