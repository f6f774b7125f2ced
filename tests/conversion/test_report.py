from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError, dataclass

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pyronorm as pn
from pyronorm.conversion import LayerReport
from pyronorm.errors import ConversionError
from pyronorm.normalizers import (
    RMS,
    Batch,
    Ghost,
    Group,
    Instance,
    LatentNorm,
    Layer,
    Normalizer,
    Population,
    Weight,
)
from tests.nets import SHAPES, conv_net, frozen_net, train_briefly


class Mixed(nn.Module):
    """One layer of several kinds, the last of them used at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 1200, 1), nn.BatchNorm2d(1200))
        self.norms = nn.ModuleDict({"group": nn.GroupNorm(8, 1200), "inst": nn.InstanceNorm2d(4)})
        self.head = nn.LayerNorm(6)
        self.rms = self.again = nn.RMSNorm(6)


def test_the_table():
    report = pn.conversion_report(pn.convert(Mixed(), only=["stem.*", "norms.group", "rms"]))
    assert str(report).splitlines() == [
        "layer        original        normalizer  channels  statistics",
        "-----------  --------------  ----------  --------  " + "-" * 51,
        "stem.1       BatchNorm2d     Batch          1,200  "
        "batch in training; no population yet for evaluation",
        "norms.group  GroupNorm       Group          1,200  each example, 8 groups",
        "rms          RMSNorm         RMS                6  each position, mean square",
        "norms.inst   InstanceNorm2d                        not converted",
        "head         LayerNorm                             not converted",
        "3 layers, 2,406 channels; 2 layers not converted",
    ]


def test_the_fields():
    report = pn.conversion_report(pn.convert(Mixed()))
    assert report.converted[1] == LayerReport(
        "norms.group", "GroupNorm", "Group", 1200, "each example, 8 groups"
    )
    assert [row.layer for row in report.converted] == [
        "stem.1",
        "norms.group",
        "norms.inst",
        "head",
        "rms",
    ]
    assert report.unconverted == ()
    assert report.num_layers == 5
    assert report.num_channels == 1200 + 1200 + 4 + 6 + 6
    assert str(report).endswith("\n5 layers, 2,416 channels")
    with pytest.raises(FrozenInstanceError):
        report.converted = ()


def test_the_order_is_that_of_the_latent_space():
    network = pn.convert(Mixed())
    report, space = pn.conversion_report(network), pn.LatentSpace.of(network)
    assert [(r.layer, r.channels, r.normalizer) for r in report.converted] == [
        (x.name, x.num_channels, x.normalizer) for x in space.layers
    ]


WORDS = {
    "Batch": (Batch(), "batch in training; population of 20 batches in evaluation"),
    "Ghost": (Ghost(4), "virtual batches of 4 in training; population of 20 batches in evaluation"),
    "Population": (Population(), "population, fixed"),
    "Group": (Group(2), "each example, 2 groups"),
    "one group": (Group(1), "each example, 1 group"),
    "Layer": (Layer(), "each example"),
    "Instance": (Instance(), "each example and channel"),
    "RMS": (RMS(), "each example, mean square"),
    "Weight": (Weight(), "weights of 0"),
}


@pytest.mark.parametrize("case", WORDS)
def test_where_the_statistics_come_from(case):
    normalizer, words = WORDS[case]
    original = train_briefly(conv_net(2), SHAPES[2], steps=20)
    network = pn.convert(original, normalizer, example_input=torch.randn(2, *SHAPES[2]))
    row = pn.conversion_report(network).converted[0]
    assert row == LayerReport("1", "BatchNorm2d", type(normalizer).__name__, 4, words)


def test_channel_last_layers_say_so():
    network = pn.convert(nn.Sequential(nn.LayerNorm(6), nn.LayerNorm((5, 6))))
    assert [row.statistics for row in pn.conversion_report(network).converted] == [
        "each position",
        "each example",
    ]


def test_frozen_batch_norm():
    row = pn.conversion_report(pn.convert(frozen_net())).converted[1]
    assert row == LayerReport("4", "FrozenBatchNorm2d", "Population", 6, "population, fixed")


def test_batches_are_counted_as_they_are_estimated():
    network = pn.convert(conv_net(2))

    def words() -> str:
        return pn.conversion_report(network).converted[0].statistics

    assert words() == "batch in training; no population yet for evaluation"
    x = torch.randn(12, *SHAPES[2])
    pn.estimate_population_statistics(network, x, batch_size=12)
    assert words() == "batch in training; population of 1 batch in evaluation"
    pn.estimate_population_statistics(network, x, batch_size=3)
    assert words() == "batch in training; population of 4 batches in evaluation"


def test_a_weight_layer_knows_where_its_linear_layer_was():
    original = nn.ModuleDict({"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4)})
    network = pn.convert(Sequence(original), Weight(), example_input=torch.randn(2, 2, 5, 5))
    (row,) = pn.conversion_report(network).converted
    assert row.statistics == "weights of layers.conv"
    by_hand = LatentNorm(Weight(), 4, parts={"linear": nn.Conv2d(2, 4, 3)})
    (row,) = pn.conversion_report(by_hand).converted
    assert row == LayerReport("LatentNorm", "LatentNorm", "Weight", 4, "weights of Conv2d")


class Sequence(nn.Module):
    def __init__(self, layers: nn.ModuleDict) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x


@dataclass(frozen=True)
class Largest(Normalizer):
    """Divide by the largest absolute value.

    This is how users write one; nothing is registered.
    """

    eps: float | None = None

    def normalize(self, layer, x, weight, bias):
        y = x / x.abs().max()
        return y if weight is None else y * weight[:, None, None] + bias[:, None, None]


@dataclass(frozen=True)
class Nameless(Largest):
    eps: float | None = None


class Silent(Largest):
    pass


@dataclass(frozen=True)
class Spoken(Largest):
    def describe(self, layer):
        return f"the largest of {layer.num_channels}"


@pytest.mark.parametrize(
    ("normalizer", "words"),
    [
        (Largest(), "Divide by the largest absolute value"),
        (Nameless(), "its own"),
        (Silent(), "its own"),
        (Spoken(), "the largest of 4"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_normalizers_of_users_are_in_it_without_registration(normalizer, words):
    row = pn.conversion_report(pn.convert(conv_net(2), normalizer)).converted[0]
    assert row == LayerReport("1", "BatchNorm2d", type(normalizer).__name__, 4, words)


def test_dataframe():
    report = pn.conversion_report(pn.convert(Mixed(), only=["stem.*", "head"]))
    frame = report.to_dataframe()
    assert list(frame) == ["layer", "original", "normalizer", "channels", "statistics"]
    assert list(frame.layer) == ["stem.1", "head", "norms.group", "norms.inst", "rms"]
    assert frame.channels.dtype == pd.Int64Dtype()
    assert frame.channels.sum() == report.num_channels == 1206
    assert list(frame.channels.isna()) == [False, False, True, True, True]
    assert frame.groupby("original").channels.sum().to_dict() == {
        "BatchNorm2d": 1200,
        "GroupNorm": 0,
        "InstanceNorm2d": 0,
        "LayerNorm": 6,
        "RMSNorm": 0,
    }


def test_dataframe_without_pandas(monkeypatch):
    report = pn.conversion_report(pn.convert(nn.LayerNorm(4)))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ImportError, match=r"to_dataframe needs pandas: pip install 'pyronorm\[study"
    ):
        report.to_dataframe()


def test_a_network_without_latents_is_refused():
    with pytest.raises(
        ConversionError, match="conversion_report: Sequential has no layer with lat"
    ):
        pn.conversion_report(conv_net(2))


def test_example_in_the_docstring():
    network = pn.convert(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)))
    docstring = pn.conversion_report.__doc__
    shown = [line.strip() for line in docstring.splitlines()]
    for line in str(pn.conversion_report(network)).splitlines():
        assert line in shown
