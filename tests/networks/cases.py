"""Small ones of all networks, and what all networks have to do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import pyronorm as pn
from pyronorm.networks import (
    MLP,
    VGG11,
    AllCNN,
    CifarResNet,
    LeNet5,
    ResNet18,
    WideResNet,
)
from tests.nets import train_briefly

Make = Callable[..., nn.Module]

CASES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "mlp": (lambda **k: MLP(7, 3, (8, 6), **k), (7,)),
    "lenet": (lambda **k: LeNet5(3, 2, channels=(4, 6), hidden=(10, 8), **k), (2, 28, 28)),
    "caffe": (lambda **k: LeNet5(3, 2, channels=(4, 6), hidden=(8,), padding=0, **k), (2, 28, 28)),
    "all_cnn": (lambda **k: AllCNN(3, 2, width=1 / 24, **k), (2, 13, 16)),
    "vgg": (lambda **k: VGG11(3, 2, width=1 / 16, **k), (2, 32, 37)),
    "resnet18": (lambda **k: ResNet18(3, 2, width=4, **k), (2, 16, 20)),
    "resnet18_imagenet": (lambda **k: ResNet18(3, 2, width=4, cifar_stem=False, **k), (2, 64, 70)),
    "cifar_resnet": (lambda **k: CifarResNet(8, 3, 2, width=4, **k), (2, 12, 14)),
    "wide_resnet": (lambda **k: WideResNet(10, 2, 3, 2, **k), (2, 12, 14)),
}
"""For each a function that makes it, with 3 outputs, and the shape of an input."""


def num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def trained(name: str) -> tuple[nn.Module, Tensor]:
    """A network whose statistics and affine maps are not the initial ones, and a batch."""
    make, shape = CASES[name]
    network = train_briefly(make(), shape, steps=2)
    network.train()
    with torch.no_grad():
        network(torch.randn(16, *shape))
    return network.eval(), torch.randn(4, *shape)


def check_conversion(name: str, normalizer: pn.normalizers.Normalizer | None, only=None) -> None:
    network, x = trained(name)
    converted = pn.convert(network, normalizer, only, example_input=x).eval()
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(converted(x), expected, rtol=1e-3, atol=1e-4)
    assert expected.std(0).min() > 1e-3  # else a constant would do
