from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm.normalizers.fingerprint import fingerprint, named_tensors, tensors
from tests.nets import conv_net


class Holder(nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)


def of(value: torch.Tensor) -> int:
    return fingerprint(Holder(value))["value"]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# One number, a rest, whole rows of the hash, rows and a rest.
SHAPES = [(), (1,), (37,), (4096,), (4097,), (3, 5, 4096), (13000,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_change_of_one_number_is_seen(shape):
    value = draw(*shape)
    before = of(value)
    assert of(value.clone()) == before
    flat = value.view(-1)
    for index in {0, 1, len(flat) // 2, 4095, 4096, len(flat) - 1}:
        if index < len(flat):
            changed = flat.clone()
            changed[index] = torch.nextafter(changed[index], torch.tensor(9.0))  # the smallest one
            assert of(changed) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda v: -v,
        lambda v: 2 * v,
        lambda v: 4 * v,
        lambda v: v.T.contiguous(),
        lambda v: v.flip(0),
        lambda v: v.flip(1),
        lambda v: v[torch.randperm(len(v))],
        lambda v: v.roll(1, 1),
        torch.zeros_like,
        torch.ones_like,
    ],
)
@pytest.mark.parametrize("size", [8, 100])
def test_order_signs_and_powers_of_two_are_seen(change, size):
    value = draw(size, size)
    assert of(change(value)) != of(value)


def test_exact_casts_and_layouts_keep_it():
    value = draw(4, 3, 5, 5)
    assert of(value.double()) == of(value.to(memory_format=torch.channels_last)) == of(value)
    half = value.bfloat16()
    assert of(half.float()) == of(half) != of(value)
    assert of(value.to_sparse()) == of(value)
    assert of(torch.complex(value, -value).conj()) == of(torch.complex(value, value))


def test_numbers_that_are_not_floating_point():
    value = torch.randint(9, (50,))
    assert of(value) == of(value.int()) != of(value.flip(0))
    assert of(value > 4) != of(value > 5)


def test_large_tensors_come_in_parts(monkeypatch):
    value = draw(20_000)
    monkeypatch.setattr("pyronorm.normalizers.fingerprint._ELEMENTS", {"cpu": 8192})
    before = of(value)
    for index in (0, 8191, 8192, 19_999):
        changed = value.clone()
        changed[index] += 1
        assert of(changed) != before
    assert of(torch.cat([value[8192:16384], value[:8192], value[16384:]])) != before


def test_parameters_and_buffers_by_name_without_counts():
    network = conv_net(2)
    names = fingerprint(network)
    assert "0.weight" in names
    assert "1.running_var" in names
    assert "1.num_batches_tracked" not in names
    assert fingerprint(copy.deepcopy(network)) == names
    assert fingerprint(nn.ReLU()) == {}


def test_tensors_are_those_with_names():
    network = conv_net(2)
    network.add_module("again", network[0])
    assert [id(t) for t in tensors(network)] == [id(t) for _, t in named_tensors(network)]
    assert len(tensors(network)) == len(fingerprint(network))
