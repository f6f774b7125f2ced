"""What a network is besides its tensors is compared, and a difference named."""

from __future__ import annotations

import json
import math
import warnings

import pytest
from torch import nn

from pyronorm import convert
from pyronorm.errors import FileError
from pyronorm.infer.architecture import check_architecture, describe_architecture


def build(activation=None, stride=(2, 1), norm=None):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=stride),
        norm or nn.BatchNorm2d(4),
        activation or nn.LeakyReLU(0.1, inplace=True),
    )


class Heads(nn.Module):
    """A user's module whose constant decides what it computes."""

    def __init__(self, num_heads=2):
        super().__init__()
        self.num_heads, self.inner = num_heads, nn.Identity()


class Renamed(Heads):
    """The same under another name."""


def saved(network):
    return json.loads(json.dumps(describe_architecture(network)))


def test_the_same_network_is_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_architecture("file", saved(build()), build(nn.LeakyReLU(0.1)))  # in place or not
        check_architecture("file", saved(convert(build())), convert(build()).eval())
        check_architecture("file", saved(Heads()), Renamed())
        check_architecture("file", saved(nn.Hardtanh(math.nan, 1.0)), nn.Hardtanh(math.nan, 1.0))


def test_latent_layers_speak_for_themselves():
    assert set(describe_architecture(convert(build()))) == {"", "0", "2"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (build(nn.LeakyReLU(0.2)), r"'2' has negative_slope=0.1, this network has 0.2 there"),
        (build(nn.ELU()), "'2' is a LeakyReLU, this network has a ELU there"),
        (build(stride=1), r"'0' has stride=\(2, 1\), this network has \(1, 1\) there"),
        (build()[:2], r"'2' \(LeakyReLU\) is not there in this network"),
        (nn.Sequential(*build(), nn.Dropout()), r"'3' \(Dropout\) is not there in the file"),
    ],
)
def test_another_one_of_torchs_modules_is_refused(other, message):
    with pytest.raises(FileError, match=f"file: is of another network. Its layer {message}"):
        check_architecture("file", saved(build()), other)


def test_what_a_later_torch_adds_does_not_matter():
    before = saved(build())
    del before["0"]["constants"]["padding_mode"]
    check_architecture("file", before, build())


def test_constants_of_users_modules_are_a_warning():
    with pytest.warns(
        UserWarning, match="the network itself.* has num_heads=2, this network has 4"
    ):
        check_architecture("file", saved(Heads()), Heads(4))
