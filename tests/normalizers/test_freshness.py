from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm.conversion import convert
from pyronorm.errors import StatisticsError
from pyronorm.normalizers import Batch, Group, LatentNorm, trust_statistics
from pyronorm.normalizers.freshness import check_statistics, invalidate_statistics, stamp_statistics
from tests.nets import SHAPES, conv_net, train_briefly


@pytest.fixture
def trained() -> nn.Module:
    return train_briefly(conv_net(2), SHAPES[2], steps=3)


def change(network: nn.Module) -> None:
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1e-6


def test_statistics_of_a_trained_network_are_current(trained):
    check_statistics(convert(trained))


def test_an_untrained_network_has_none():
    with pytest.raises(
        StatisticsError, match=r"1 has no population statistics.*2 of 2 batch layers"
    ):
        check_statistics(convert(conv_net(2)))
    with pytest.raises(StatisticsError, match="estimate_population_statistics"):
        check_statistics(LatentNorm(Batch(), 3))


def test_a_changed_weight_makes_them_stale(trained):
    network = convert(trained)
    change(network)
    with pytest.raises(
        StatisticsError, match="1: .* stale, 1 of 10 parameter tensors have changed"
    ):
        check_statistics(network)


def test_deepcopy_cast_and_parts_keep_them_current(trained):
    network = convert(trained)
    check_statistics(copy.deepcopy(network))
    check_statistics(copy.deepcopy(network).double())
    check_statistics(network[:4])
    with pytest.raises(StatisticsError, match="stale"):
        check_statistics(copy.deepcopy(network).bfloat16())


def test_loading_a_state_dict_brings_its_statistics(trained):
    network = convert(conv_net(2))
    network.load_state_dict(trained.state_dict())
    check_statistics(network)
    change(network)
    with pytest.raises(StatisticsError):
        check_statistics(network)
    network.load_state_dict(conv_net(2).state_dict())
    with pytest.raises(StatisticsError, match="has no population statistics"):
        check_statistics(network)


def test_trust_accepts_them_as_they_are(trained):
    network = convert(trained)
    change(network)
    trust_statistics(network)
    check_statistics(network)
    untrained = convert(conv_net(2))
    trust_statistics(untrained)
    check_statistics(untrained)


def test_invalid_statistics_say_so_in_the_state_dict(trained):
    network = convert(trained)
    invalidate_statistics(network)
    stamp_statistics(network)
    with pytest.raises(StatisticsError, match="has no population statistics"):
        check_statistics(network)
    assert network.state_dict()["1.num_batches_tracked"] == 0


def test_other_normalizers_have_nothing_to_check():
    check_statistics(convert(conv_net(2), Group(2)))
    check_statistics(nn.Linear(2, 2))
