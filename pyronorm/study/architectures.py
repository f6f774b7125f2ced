"""The networks that studies know by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from pyronorm import networks
from pyronorm.checks import checked
from pyronorm.datasets import ImageData
from pyronorm.errors import OptionError

__all__ = ["NETWORKS", "check_network", "make_network"]

NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "small-conv": networks.SmallConvNet,
        "lenet-5": networks.LeNet5,
        "lenet-5-8": partial(networks.LeNet5, padding=4, image_size=8),  # images of 8x8
        "lenet-5-32": partial(networks.LeNet5, padding=0, image_size=32),  # images of 32x32
        "all-cnn-small": partial(networks.AllCNN, width=1 / 6),  # 16 and 32 channels
        "all-cnn-tiny": partial(networks.AllCNN, width=1 / 12),  # 8 and 16 channels
        "all-cnn": networks.AllCNN,
        "vgg-11": networks.VGG11,
        "resnet-18": networks.ResNet18,
        "resnet-20": partial(networks.CifarResNet, 20),
        "resnet-32": partial(networks.CifarResNet, 32),
        "wrn-28-10": partial(networks.WideResNet, 28, 10),
    }
)
"""Networks by name: functions of the number of classes and of input channels."""


def check_network(name: str) -> None:
    """Refuse unknown names.

    Raises:
        OptionError: the message lists the choices.
    """
    if name not in NETWORKS:
        raise OptionError(f"study: no network {name!r}; choose from {', '.join(NETWORKS)}.")


@checked
def make_network(name: str, data: ImageData, **options: Any) -> nn.Module:
    """A network of :data:`NETWORKS` for the images and classes of a data set.

    Args:
        name: its name.
        data: gives the numbers of classes and of channels.
        options: further arguments, such as ``norm`` and ``dropout``.
    """
    check_network(name)
    return NETWORKS[name](data.num_classes, data.train.x.shape[1], **options)
