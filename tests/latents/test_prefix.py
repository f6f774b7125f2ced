from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pyronorm.conversion import convert
from pyronorm.latents import LatentNetwork
from pyronorm.latents.prefix import Prefix


class Net(nn.Module):
    """Counts how often the part before the first latent runs."""

    def __init__(self, prefix, suffix=lambda x, h, y: y) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)
        self.prefix, self.suffix = prefix, suffix

    def forward(self, x):
        h = self.prefix(x)
        return self.suffix(x, h, self.norm(h))


def compare(prefix, suffix=lambda x, h, y: y, samples_per_call=1):
    """Many draws against single ones, which record nothing."""
    network = LatentNetwork(convert(Net(prefix, suffix)), samples_per_call=samples_per_call)
    x = torch.randn(3, 4)
    shift, scale = torch.randn(5, 1, 4), torch.rand(5, 1, 4) + 0.5
    expected = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(network(x, shift, scale), expected)


def test_skip_connections_from_before_the_first_latent():
    for chunk in (1, 2):
        compare(lambda x: (2 * x).exp(), lambda x, h, y: h + y * x, samples_per_call=chunk)


def test_a_recorded_tensor_that_is_changed_in_place_later_is_not_replayed():
    compare(lambda x: 2 * x, lambda x, h, y: h.add_(1) + y)
    compare(lambda x: F.relu(2 * x, inplace=True), lambda x, h, y: y + h.mul_(2))


def test_in_place_operations_within_the_prefix():
    compare(lambda x: (2 * x).add_(1).relu_(), lambda x, h, y: y + h)


def test_branches_on_values_take_the_same_course():
    compare(lambda x: x + 1 if bool(x.sum() > 0) else x - 1)


def test_random_prefixes_are_not_replayed():
    torch.manual_seed(2)
    network = LatentNetwork(convert(Net(lambda x: F.dropout(x, 0.5))), samples_per_call=1)
    outputs = network(torch.ones(3, 4), torch.zeros(6, 1, 4), torch.ones(6, 1, 4))
    assert len(torch.unique(outputs, dim=0)) > 1


def test_largest_activation_is_measured():
    network = LatentNetwork(
        convert(nn.Sequential(nn.GroupNorm(1, 4), nn.Upsample(scale_factor=3), nn.GroupNorm(1, 4)))
    )
    prefix = Prefix(network.layers)
    with prefix.record():
        network.network(torch.randn(2, 4, 5))
    assert prefix.largest_activation == 2 * 4 * 15
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.layers)


def test_a_network_that_starts_with_a_latent_layer_has_no_prefix():
    network = LatentNetwork(convert(nn.Sequential(nn.GroupNorm(1, 4))), samples_per_call=1)
    x = torch.randn(2, 4)
    shift, scale = torch.randn(3, 1, 4), torch.ones(3, 1, 4)
    expected = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(network(x, shift, scale), expected)


def test_a_course_that_changes_is_followed():
    calls = iter(range(100))

    def fickle(x):
        return x.exp() if next(calls) % 2 else x + 1

    network = LatentNetwork(convert(Net(fickle)), samples_per_call=1)
    y = network(torch.randn(3, 4), torch.zeros(4, 1, 4), torch.ones(4, 1, 4))
    assert torch.equal(y[0], y[2])
    assert torch.equal(y[1], y[3])
    assert not torch.equal(y[0], y[1])
