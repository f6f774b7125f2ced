from __future__ import annotations

import copy

import pytest
from torch import nn

from pyronorm.conversion import convert
from pyronorm.errors import StatisticsError
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import Batch, Group, LatentNorm, trust_statistics
from pyronorm.normalizers.freshness import (
    check_statistics,
    invalidate_statistics,
    stamp_statistics,
)
from tests.nets import change, conv_net, train_briefly


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
    with pytest.raises(StatisticsError, match=r"1: .* stale, 1 of 14 tensors \('0.weight'\)"):
        check_statistics(network)


def test_deepcopy_cast_and_parts_keep_them_current(trained):
    network = convert(trained)
    check_statistics(copy.deepcopy(network))
    check_statistics(copy.deepcopy(network).double())
    check_statistics(network[:4])
    check_statistics(nn.Sequential(nn.Sequential(network)))
    check_statistics(nn.Sequential(nn.Sequential(network))[0])
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


def test_an_edited_state_dict_with_the_old_statistics_brings_none(trained):
    network = convert(trained)
    state = copy.deepcopy(network.state_dict())
    network.load_state_dict(state)
    check_statistics(network)
    network.load_state_dict(state | {"3.weight": 2 * state["3.weight"]})
    with pytest.raises(StatisticsError, match="stale, 1 of 14 tensors .'3.weight'"):
        check_statistics(network)
    head = [k for k in state if k.endswith("weight")][-1]
    network.load_state_dict(state | {head: 2 * state[head]})  # statistics do not depend on it
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


CHANGES = {
    "negated": lambda w: w.neg_(),
    "doubled": lambda w: w.mul_(2),
    "fourfold": lambda w: w.mul_(4),
    "zeroed": lambda w: w.zero_(),
    "permuted": lambda w: w.copy_(w.flip(0)),
    "transposed": lambda w: w.copy_(w.transpose(-1, -2).clone()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["0.weight", "3.weight", "1.weight", "1.running_var"])
def test_order_and_sign_of_weights_and_buffers_count(trained, change, name):
    network = convert(trained)
    tensor = network.state_dict()[name]
    if change is CHANGES["transposed"] and tensor.ndim < 2:
        pytest.skip("a vector is its own transpose")
    change(tensor)
    with pytest.raises(StatisticsError, match=f"stale, 1 of 14 tensors .'{name}'."):
        check_statistics(network)


def test_layers_that_change_places_are_noticed():
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(3)]
    trained = train_briefly(nn.Sequential(*blocks, nn.Linear(4, 3)), (4,), steps=3)
    swapped, copied, shortened = (convert(trained) for _ in range(3))
    swapped[0], swapped[2] = swapped[2], swapped[0]
    copied[0].load_state_dict(copied[2].state_dict())
    shortened[1] = nn.Identity()
    for network in (swapped, copied, shortened):
        with pytest.raises(StatisticsError, match="stale"):
            check_statistics(network)


def test_a_file_without_all_tensors_brings_no_statistics(trained):
    other = {k: v for k, v in conv_net(2).state_dict().items() if "0.weight" in k}
    network = convert(trained)
    network.load_state_dict(other, strict=False)
    with pytest.raises(StatisticsError, match="stale, 1 of 14"):
        check_statistics(network)
    whole = nn.ModuleDict({"net": network, "head": nn.Linear(2, 2)})
    state = {f"net.{k}": v for k, v in trained.state_dict().items()}
    whole.load_state_dict(state, strict=False)  # all of the network, the head missing
    check_statistics(network)


def test_reference_statistics_are_checked(trained):
    network = LatentNetwork(convert(conv_net(2)))
    with pytest.raises(StatisticsError, match="no population"):
        network.reference_statistics()
    LatentNetwork(convert(trained)).reference_statistics()
