"""Layers are told apart by what they compute, and nothing changes by it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm.conversion.kind import Kind
from pyronorm.conversion.probe import (
    compare,
    has_bounded_output,
    is_computable,
    randomized,
    verify,
)
from pyronorm.errors import ConversionError
from pyronorm.normalizers import RMS, Batch, Group, Layer

BATCH = Kind(Batch(eps=1e-5), 6, ranks=(2, 3))


class Unbiased(nn.Module):
    """Divides by the root of the unbiased variance, so by a little more."""

    def forward(self, x):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()


def test_the_same_layer_agrees_on_every_rank_it_takes():
    found = compare(nn.BatchNorm1d(6), BATCH)
    assert (found.ranks, found.problem) == ([2, 3], "")
    assert found.difference < 1e-6
    found = compare(nn.LayerNorm(6), Kind(Layer(eps=1e-5), 6, channel_last=True))
    assert found.ranks == [2, 3, 4, 5]


def test_a_difference_is_measured_and_named():
    kind = Kind(Layer(eps=1e-5), 6, channel_last=True)
    found = compare(Unbiased(), kind)
    assert found.problem.startswith(
        "on a random input of shape (4, 6) in evaluation mode the outputs"
    )
    # sqrt(6 / 5) = 1.095 times as large; relative to 1 + |y|, at most 1 - 1/1.095 = .087
    assert 0.03 < found.difference < 0.087
    with pytest.raises(ConversionError, match=r"is not Layer\(eps=1e-05.*outputs differ by 0.0"):
        verify(Unbiased(), kind)


@pytest.mark.parametrize("eps", [1e-3, 1e-6])
def test_another_eps_is_seen(eps):
    assert compare(nn.LayerNorm(6, eps=eps), Kind(Layer(eps=1e-5), 6, channel_last=True)).problem


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.GroupNorm(2, 6), Kind(Group(3, eps=1e-5), 6)),
        (nn.LayerNorm(6), Kind(RMS(eps=1e-5), 6, channel_last=True)),
        (nn.BatchNorm1d(6), Kind(Layer(eps=1e-5), 6)),
    ],
)
def test_another_kind_is_refused(layer, kind):
    with pytest.raises(ConversionError, match="outputs differ by"):
        verify(layer, kind)


def test_a_layer_that_runs_on_nothing_cannot_be_checked():
    class Picky(nn.Module):
        def forward(self, x):
            raise ValueError

    with pytest.raises(ConversionError, match="runs on none of the random inputs that have 6 chan"):
        verify(Picky(), BATCH)


def test_layers_without_numbers_are_left_unchecked():
    layer = nn.LayerNorm(6, device="meta")
    assert not is_computable(layer)
    verify(layer, Kind(RMS(), 6))
    assert is_computable(nn.LayerNorm(6))


def test_normalization_keeps_outputs_bounded():
    assert has_bounded_output(nn.LayerNorm(6), 6)
    assert has_bounded_output(nn.BatchNorm1d(6), 6) is False  # in evaluation mode it is affine
    assert has_bounded_output(nn.Linear(6, 6), 6) is False
    assert has_bounded_output(nn.Embedding(6, 6), 6) is None


def test_nothing_changes():
    layer = nn.BatchNorm1d(6).train()
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(layer.state_dict())
    state = torch.get_rng_state()
    compare(layer, BATCH)
    has_bounded_output(layer, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.training
    assert not calls
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_randomized_copy():
    layer = nn.BatchNorm2d(6).half()
    layer.register_forward_pre_hook(lambda *_: None)
    found = randomized(layer)
    assert found.weight.dtype == found.running_var.dtype == torch.float64
    assert not found._forward_pre_hooks
    assert found.weight.unique().numel() == 6
    assert (found.running_var > 0).all()
    assert torch.equal(layer.weight, torch.ones(6).half())
