"""Each of torch's normalization layers is described as it is; what it cannot be is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm.conversion.probe import compare
from pyronorm.conversion.torch_layers import TORCH_LAYERS
from pyronorm.errors import ConversionError
from pyronorm.normalizers import RMS, Batch, Group, Instance, Layer, SyncBatch

CASES = {
    "BatchNorm1d": (nn.BatchNorm1d(6, eps=1e-3), Batch(eps=1e-3), [2, 3]),
    "BatchNorm2d": (nn.BatchNorm2d(6), Batch(eps=1e-5), [4]),
    "BatchNorm3d": (nn.BatchNorm3d(6, affine=False), Batch(eps=1e-5), [5]),
    "SyncBatchNorm": (nn.SyncBatchNorm(6), SyncBatch(eps=1e-5), None),
    "GroupNorm": (nn.GroupNorm(3, 6, eps=1e-2), Group(3, eps=1e-2), [2, 3, 4, 5]),
    "LayerNorm": (nn.LayerNorm(6, bias=False), Layer(eps=1e-5), [2, 3, 4, 5]),
    "LayerNorm, axes": (
        nn.LayerNorm([6, 2]),
        Layer(eps=1e-5, normalized_shape=(6, 2)),
        [3, 4, 5, 6],
    ),
    "RMSNorm": (nn.RMSNorm(6, eps=1e-4), RMS(eps=1e-4), [2, 3, 4, 5]),
    "InstanceNorm1d": (nn.InstanceNorm1d(6, affine=True), Instance(eps=1e-5), [3]),
    "InstanceNorm2d": (nn.InstanceNorm2d(6), Instance(eps=1e-5), [4]),
    "InstanceNorm3d": (nn.InstanceNorm3d(6), Instance(eps=1e-5), [5]),
}


def kind_of(layer):
    return TORCH_LAYERS[type(layer)](layer)


def test_every_class_has_a_case():
    assert {type(layer) for layer, _, _ in CASES.values()} == set(TORCH_LAYERS)


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_the_layer_computes(name):
    layer, normalizer, ranks = CASES[name]
    kind = kind_of(layer)
    assert (kind.normalizer, kind.num_channels) == (normalizer, 6)
    if ranks is None:  # runs on a GPU only
        return
    found = compare(layer, kind)
    assert not found.problem
    assert found.ranks == ranks


def test_population_statistics_count_once_they_have_seen_data():
    layer = nn.BatchNorm1d(6)
    assert not kind_of(layer).has_population
    layer(torch.randn(5, 6))
    assert kind_of(layer).has_population
    assert not kind_of(nn.GroupNorm(2, 6)).has_population


def test_a_weight_for_each_position_is_kept_by_no_other_normalizer():
    assert (
        kind_of(nn.LayerNorm([6, 2])).fixed == "normalizes over (6, 2) with a weight per position"
    )
    assert not kind_of(nn.LayerNorm(6)).fixed


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.BatchNorm1d(6, track_running_stats=False),
            "has no population statistics|it has no pop",
        ),
        (nn.InstanceNorm1d(6, track_running_stats=True), "two different layers in training and"),
        (nn.LayerNorm(1), "normalizes over a single value"),
        (nn.RMSNorm([6, 2]), r"normalizes over the axes \(6, 2\)"),
    ],
)
def test_refusals(layer, message):
    with pytest.raises(ConversionError, match=message):
        kind_of(layer)


def test_statistics_of_a_group_of_processes_are_refused():
    layer = nn.SyncBatchNorm(6)
    layer.process_group = object()  # some of the processes
    with pytest.raises(ConversionError, match="within a group of processes"):
        kind_of(layer)
