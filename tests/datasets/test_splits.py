from __future__ import annotations

import pytest
import torch

from pyronorm.datasets.splits import choose, choose_stratified
from pyronorm.errors import OptionError

Y = torch.tensor([0] * 50 + [1] * 30 + [3] * 20)[torch.randperm(100)]  # class 2 is empty


@pytest.mark.parametrize("num", [0, 1, 7, 33, 50, 99, 100])
def test_stratified_parts_cover_everything_once_with_the_right_shares(num):
    chosen, rest = choose_stratified(Y, num, 3)
    assert torch.cat([chosen, rest]).sort().values.tolist() == list(range(100))
    assert chosen.tolist() == sorted(chosen.tolist())
    assert len(chosen) == num
    counts = torch.bincount(Y[chosen], minlength=4)
    assert (counts - num * torch.tensor([0.5, 0.3, 0.0, 0.2])).abs().max() < 1


def test_largest_remainders():
    # Shares of 7: 3.5, 2.1 and 1.4; the seventh goes to the largest remainder.
    assert torch.bincount(Y[choose_stratified(Y, 7, 0)[0]]).tolist() == [4, 2, 0, 1]
    # Shares of 1: .5, .3, .2.
    assert Y[choose_stratified(Y, 1, 5)[0]].tolist() == [0]


@pytest.mark.parametrize("pick", [choose, choose_stratified])
def test_the_seed_decides_and_nothing_else(pick):
    values = Y if pick is choose_stratified else Y.double()
    torch.manual_seed(1)
    first = pick(values, 40, 8)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), expected)  # the global generator is not touched
    assert torch.equal(pick(values, 40, 8)[0], first[0])
    assert not torch.equal(pick(values, 40, 9)[0], first[0])


def test_every_example_of_a_class_is_as_likely():
    """10 of 20 members in 400 seeds: each count is Binomial(400, 1/2); 5.5 sd, false alarm 1e-6."""
    counts = torch.zeros(20)
    for seed in range(400):
        counts[choose_stratified(torch.zeros(20, dtype=torch.long), 10, seed)[0]] += 1
    assert (counts - 200).abs().max() < 55


def test_choose_without_classes():
    chosen, rest = choose(torch.rand(9), 4, 0)
    assert len(chosen) == 4
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(9))


@pytest.mark.parametrize("pick", [choose, choose_stratified])
@pytest.mark.parametrize("num", [-1, 101])
def test_too_many(pick, num):
    values = Y if pick is choose_stratified else Y.double()
    with pytest.raises(OptionError, match=f"cannot choose {num} of 100"):
        pick(values, num, 0)
