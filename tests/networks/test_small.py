"""The small network against the same computation written with torch's functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyronorm as pn
from pyronorm.networks import SmallConvNet
from tests.nets import train_briefly


def by_hand(net: SmallConvNet, x: Tensor, training: bool) -> Tensor:
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for layer, stride in ((1, 1), (2, 2), (3, 1)):
        x = F.conv2d(x, state[f"conv{layer}.weight"], None, stride, padding=1)
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            mean, var = state[f"bn{layer}.running_mean"], state[f"bn{layer}.running_var"]
        weight, bias = state[f"bn{layer}.weight"], state[f"bn{layer}.bias"]
        factor = weight / (var + 1e-5).sqrt()
        x = x * factor[:, None, None] + (bias - mean * factor)[:, None, None]
        x = x.clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("classes", "channels", "width", "size"),
    [(10, 1, 16, (8, 8)), (3, 2, 5, (7, 6)), (4, 3, 2, (4, 4)), (2, 1, 3, (4, 11))],
)
def test_output(
    classes: int, channels: int, width: int, size: tuple[int, int], training: bool
) -> None:
    net = SmallConvNet(classes, channels, width).double()
    train_briefly(net.float(), (channels, *size), steps=3)
    net.double().train(training)
    x = torch.randn(6, channels, *size, dtype=torch.float64)
    expected = by_hand(net, x, training)
    assert expected.shape == (6, classes)
    torch.testing.assert_close(net(x), expected)


def test_defaults_are_those_of_the_digits() -> None:
    net = SmallConvNet()
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert [m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == [16, 32, 32]


@pytest.mark.parametrize(("classes", "channels", "width"), [(10, 1, 16), (3, 2, 5)])
def test_number_of_parameters(classes: int, channels: int, width: int) -> None:
    # Convolutions have no bias: the normalization after them would cancel it.
    convolutions = 9 * (channels * width + width * 2 * width + 2 * width * 2 * width)
    affine = 2 * (width + 2 * width + 2 * width)
    linear = 2 * width * classes + classes
    net = SmallConvNet(classes, channels, width)
    assert sum(p.numel() for p in net.parameters()) == convolutions + affine + linear


@pytest.mark.parametrize(
    ("normalizer", "keeps"),
    [(None, True), (pn.normalizers.Weight(), True), (pn.normalizers.Group(8), False)],
    ids=["batch", "weight", "group"],
)
def test_converts_to_every_normalizer_of_the_studies(
    normalizer: pn.normalizers.Normalizer | None, keeps: bool
) -> None:
    net = train_briefly(SmallConvNet(3, 2, 8), (2, 8, 8)).eval()
    x = torch.randn(5, 2, 8, 8)
    converted = pn.convert(net, normalizer, example_input=x).eval()
    space = pn.LatentNetwork(converted).space
    assert space.names == ("bn1", "bn2", "bn3")
    assert space.sizes == (8, 16, 16)
    if keeps:
        torch.testing.assert_close(converted(x), net(x), rtol=1e-4, atol=1e-5)
    else:
        assert converted(x).shape == (5, 3)
