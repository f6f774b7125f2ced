"""Batches dealt to processes: every example once, alike in all rounds, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from pyronorm.errors import DataError
from pyronorm.infer.processes import Processes
from pyronorm.infer.shares import Share, is_dealt, is_even


def processes(size: int, rank: int = 0) -> Processes:
    found = Processes()
    found.size, found.rank = size, rank
    return found


def plan_of(examples: int, batch: int) -> list[list[int]]:
    return [[*range(i, min(i + batch, examples))] for i in range(0, examples, batch)]


def dealt(plan: list[list[int]], size: int, **options: object) -> list[list[list[int]]]:
    return [Share(processes(size, rank), **options).deal(plan) for rank in range(size)]


def flat(shares: list[list[list[int]]]) -> list[int]:
    return sorted(index for share in shares for batch in share for index in batch)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("examples", [6, 7, 12, 13, 17, 24])
@pytest.mark.parametrize("batch", [2, 4, 5])
@pytest.mark.parametrize("rounds", [True, False])
def test_every_example_counts_once(size: int, examples: int, batch: int, rounds: bool) -> None:
    shares = dealt(plan_of(examples, batch), size, rounds=rounds)
    assert flat(shares) == [*range(examples)]
    if rounds:
        assert len({len(share) for share in shares}) == 1
        for together in zip(*shares, strict=True):
            lengths = [len(part) for part in together]
            assert max(lengths) - min(lengths) <= 1  # cut evenly
            assert min(lengths) >= 1


def test_a_round_is_one_batch_of_a_single_process() -> None:
    shares = dealt(plan_of(24, 4), 2, rounds=True)
    joined = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert joined == plan_of(24, 8)


def test_a_rest_that_is_too_small_joins_the_round_before() -> None:
    shares = dealt(plan_of(17, 4), 2, rounds=True, least=2)  # one example is left
    assert flat(shares) == [*range(17)]
    assert [[len(b) for b in share] for share in shares] == [[4, 4], [4, 5]]
    with pytest.raises(DataError, match="3 examples are too few for 2 processes"):
        dealt(plan_of(3, 4), 2, rounds=True, least=2)


def test_limits_and_equal_batches() -> None:
    assert flat(dealt(plan_of(24, 4), 2, limit=3)) == [*range(12)]  # batches of all together
    assert flat(dealt(plan_of(24, 4), 2, rounds=True, limit=2)) == [*range(16)]  # rounds
    shares = dealt(plan_of(18, 4), 2, equal=True)
    assert flat(shares) == [*range(16)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_loaders_are_dealt_by_their_indices(shuffle: bool) -> None:
    x = torch.arange(20.0)
    loader = DataLoader(
        TensorDataset(x), 4, shuffle=shuffle, generator=torch.Generator().manual_seed(1)
    )
    assert Share(Processes()).of(loader) is loader
    assert is_dealt(loader)
    assert is_even(loader)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(2)])


def test_what_is_a_share_already() -> None:
    data = TensorDataset(torch.arange(8.0))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    own = [
        DataLoader(data, 2, sampler=sampler),
        DataLoader(Stream(), 2),
        [torch.zeros(2, 3)],
    ]
    for batches in own:
        assert not is_dealt(batches)
        assert Share(processes(2)).of(batches) is batches
    assert Share(processes(2, 1), limit=5).own_limit(own[2]) == 2
    assert Share(processes(2, 1), limit=5, rounds=True).own_limit(own[2]) == 5
    assert Share(processes(2)).own_limit(own[2]) is None
