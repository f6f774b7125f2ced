"""A converted layer takes the inputs that the original takes, and no others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm import LatentNetwork, convert
from pyronorm.errors import ShapeError
from pyronorm.normalizers import Batch, Group, Layer

C = 4  # as many as there are examples and positions, where an axis may be taken for another
LAYERS = {
    "batch 1d": lambda: nn.BatchNorm1d(C),
    "batch 2d": lambda: nn.BatchNorm2d(C),
    "batch 3d": lambda: nn.BatchNorm3d(C),
    "instance 1d": lambda: nn.InstanceNorm1d(C),
    "instance 2d": lambda: nn.InstanceNorm2d(C, affine=True),
    "instance 3d": lambda: nn.InstanceNorm3d(C),
    "group": lambda: nn.GroupNorm(2, C),
    "layer": lambda: nn.LayerNorm(C),
    "layer over axes": lambda: nn.LayerNorm((C, C)),
    "rms": lambda: nn.RMSNorm(C),
}


@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_inputs_with_the_same_result(name, ndim):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.train()(torch.randn(C, C, *(C,) * {"1d": 1, "2d": 2, "3d": 3}.get(name[-2:], 1)))
    x = torch.randn((C,) * ndim)
    new = convert(layer)
    for training in (False, True):
        try:
            expected = copy.deepcopy(layer).train(training)(x)
        except (ValueError, RuntimeError):
            with pytest.raises(ShapeError):
                new.train(training)(x)
        else:
            torch.testing.assert_close(new.train(training)(x), expected)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.BatchNorm1d(C), (C, C, C, C), "expected 2D or 3D input (got 4D input)"),
        (nn.BatchNorm2d(C), (C, C, C), "expected 4D input (got 3D input)"),
        (nn.BatchNorm2d(C), (C, C), "expected 4D input (got 2D input)"),
    ],
)
def test_torchs_own_refusal(layer, shape, message):
    with pytest.raises(ValueError, match=r"input") as theirs:
        layer(torch.randn(shape))
    with pytest.raises(ShapeError) as ours:
        convert(layer).train()(torch.randn(shape))
    assert message in str(theirs.value)
    assert message in str(ours.value)


@pytest.mark.parametrize("normalizer", [Batch(), Group(2), Layer()], ids=str)
def test_another_normalizer_keeps_the_ranks(normalizer):
    with pytest.raises(ShapeError, match="expected 4D"):
        convert(nn.BatchNorm2d(C), normalizer).train()(torch.randn(C, C, C))
    unbatched = convert(nn.InstanceNorm2d(C), normalizer).train()
    x = torch.randn(C, C, C)
    torch.testing.assert_close(unbatched(x), unbatched(x[None])[0])


def test_one_image_of_a_network():
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1))
    x = torch.randn(32, 3, 16, 16)
    network(x)
    converted = convert(network.eval())
    with pytest.raises(ShapeError, match="1: expected 4D input"):
        converted(x[0])


def test_latents_of_an_unbatched_input():
    layer = nn.InstanceNorm2d(C, affine=True)
    x, shift, scale = torch.randn(C, C, C), torch.randn(C), torch.rand(C) + 0.5
    hat = nn.InstanceNorm2d(C)(x)
    expected = scale[:, None, None] * (hat + shift[:, None, None])
    torch.testing.assert_close(LatentNetwork(convert(layer))(x, shift, scale), expected)


def test_latents_of_a_layer_norm_over_the_last_axes():
    layer = nn.LayerNorm((5, 4))
    nn.init.normal_(layer.weight)
    x, shift, scale = torch.randn(2, 3, 5, 4), torch.randn(2, 5), torch.rand(2, 5) + 0.5
    hat = nn.LayerNorm((5, 4), elementwise_affine=False)(x)
    w, b = layer.weight, layer.bias
    network = LatentNetwork(convert(layer))

    def expected(shift, scale):
        return w * scale[..., None] * (hat + shift[..., None]) + b

    torch.testing.assert_close(network(x, shift[0], scale[0]), expected(shift[0], scale[0]))
    each = expected(shift[:, None], scale[:, None])
    torch.testing.assert_close(network(x, shift, scale), each)
