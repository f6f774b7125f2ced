"""Generators of training's own, and the user's as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pyronorm.infer.generators import (
    Generators,
    capture,
    kept_order,
    order_generators,
    replayed,
    restore,
)

CPU = torch.device("cpu")


def numbers():
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


@pytest.fixture(autouse=True)
def users():
    """The user's generators, put back after the test."""
    state = capture(CPU)
    yield
    restore(state, CPU)


def test_a_captured_state_repeats():
    state = capture(CPU)
    first = numbers()
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002 - keeps a second number in hand
    state_between = capture(CPU)
    more = numbers()
    restore(state, CPU)
    assert numbers() == first
    restore(state_between, CPU)
    assert numbers() == more


@pytest.mark.parametrize("kind", [int, torch.Generator])
def test_with_a_seed_they_go_on_from_use_to_use(kind):
    def make():
        return Generators(3 if kind is int else torch.Generator().manual_seed(3), CPU)

    before = capture(CPU)
    own = make()
    with own.use():
        first = numbers()
    with own.use():
        second = numbers()
    after = numbers()
    restore(before, CPU)
    assert numbers() == after  # the user's never moved
    assert first != second
    with make().use():
        assert (numbers(), numbers()) == (first, second)


def test_after_an_error_too():
    before = capture(CPU)["torch"]
    with pytest.raises(ZeroDivisionError), Generators(3, CPU).use():
        numbers()
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_they_are_the_users():
    state = capture(CPU)
    with Generators(None, CPU).use():
        first = numbers()
    restore(state, CPU)
    assert numbers() == first


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("inside", [False, True])
def test_states_are_stored_and_put_back(seed, inside):
    own = Generators(seed, CPU)
    if inside:
        with own.use():
            stored = own.state()
            first = numbers()
            own.restore(stored)
            assert numbers() == first
    else:
        stored = own.state()
        with own.use():
            first = numbers()
        own.restore(stored)
        with own.use():
            assert numbers() == first


def test_replayed_goes_back_to_its_beginning():
    with replayed(CPU) as again:
        first = numbers()
        again()
        assert numbers() == first


def test_the_order_of_a_loader():
    data = TensorDataset(torch.arange(20))
    own, inner = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    loader = DataLoader(data, 5, sampler=RandomSampler(data, generator=inner), generator=own)
    assert {id(g) for g in order_generators(loader)} == {id(own), id(inner)}
    assert order_generators(DataLoader(data, 5, shuffle=True)) == []
    assert order_generators([1, 2]) == []

    def order():
        return [int(i) for (batch,) in loader for i in batch]

    with kept_order(loader):
        first = order()
    assert order() == first
    assert order() != first
