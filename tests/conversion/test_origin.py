"""What a normalizer learns of the layer whose place it takes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pyronorm.conversion.kind import Kind
from pyronorm.conversion.origin import LayerOrigin
from pyronorm.conversion.surroundings import Surroundings
from pyronorm.normalizers import Batch, Layer
from pyronorm.normalizers.origin import Origin


def test_statistics_are_those_of_the_layer_itself():
    layer = nn.BatchNorm1d(4, eps=1e-3)
    layer(torch.randn(9, 4))
    origin = LayerOrigin("bn", layer, Kind(Batch(eps=1e-3), 4, has_population=True))
    assert isinstance(origin, Origin)
    assert origin.mean is layer.running_mean  # not a copy
    assert origin.var is layer.running_var
    assert origin.num_batches is layer.num_batches_tracked
    assert (origin.eps, origin.has_population) == (1e-3, True)


def test_a_layer_without_statistics_has_none():
    origin = LayerOrigin("ln", nn.LayerNorm(4), Kind(Layer(), 4))
    assert origin.mean is origin.var is origin.num_batches is None
    assert (origin.eps, origin.has_population) == (0.0, False)


def test_the_network_is_asked_by_the_name_of_the_layer():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(5))
    new = copy.deepcopy(network)
    around = Surroundings(network, new, ["1", "3"], torch.zeros(2, 3))
    origin = LayerOrigin("1", network[1], Kind(Batch(), 4), around)
    mean, var = origin.moments_of_input([0.5], [2.0])(torch.zeros(0))
    weight, bias = network[0].weight, network[0].bias
    torch.testing.assert_close(mean, 0.5 * weight.sum(1) + bias)
    torch.testing.assert_close(var, 4.0 * weight.square().sum(1))
    linear = new[2]
    name, taken = LayerOrigin("3", network[3], Kind(Batch(), 5), around).take_linear()
    assert name == "2"
    assert taken is linear
    assert isinstance(new[2], nn.Identity)
