from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from pyronorm import LatentNetwork, convert
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.infer import with_target
from pyronorm.infer.batch import split
from pyronorm.infer.data import (
    as_batches,
    count_examples,
    folded,
    gather,
    has_small_rest,
    inputs,
)

X, Y = torch.arange(14.0).view(7, 2), torch.arange(7)


class Examples(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return X[i], Y[i]


FORMS = {
    "tensors": (X, Y),
    "data set": TensorDataset(X, Y),
    "own data set": Examples(),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "list of batches": [(X[:3], Y[:3]), (X[3:6], Y[3:6]), (X[6:], Y[6:])],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batches(form):
    batches = [split(batch) for batch in as_batches(FORMS[form], batch_size=3)]
    assert [len(batch.x) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch.x for batch in batches]), X)
    assert torch.equal(torch.cat([batch.y for batch in batches]), Y)
    whole = gather(FORMS[form])
    assert torch.equal(whole.x, X)
    assert torch.equal(whole.y, Y)


def test_inputs_alone():
    assert [len(x) for x in inputs(X, LatentNetwork(convert(nn.BatchNorm1d(2))), 4)] == [4, 3]
    assert gather(X).y is None
    assert split([X]) == (X, None, None)


@pytest.mark.parametrize("form", ["tensors", "data set", "own data set"])
def test_shuffling_keeps_pairs(form):
    torch.manual_seed(1)
    batches = [split(b) for b in as_batches(FORMS[form], batch_size=3, shuffle=True)]
    assert [len(batch.x) for batch in batches] == [3, 3, 1]
    for x, y, _ in batches:
        assert torch.equal(x[:, 0], 2.0 * y)
    order = torch.cat([batch.y for batch in batches]).tolist()
    assert order != list(range(7)) == sorted(order)


def sizes(batches):
    return [len(batch.x) for batch in map(split, batches)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_small_rest_joins_the_batch_before_it(form, shuffle):
    """Whoever made the batches, and no example is lost."""

    def batches(least):
        return list(folded(as_batches(FORMS[form], 3, shuffle=shuffle, least=least), least))

    assert sizes(batches(1)) == [3, 3, 1]
    assert sizes(batches(2)) == [3, 4]
    assert sorted(torch.cat([batch.y for batch in map(split, batches(2))]).tolist()) == list(
        range(7)
    )


def test_a_rest_that_is_large_enough_stays():
    assert sizes(folded(as_batches((X, Y), 4, least=3), 3)) == [4, 3]
    assert sizes(folded(as_batches((X, Y), 4, least=4), 4)) == [7]
    assert sizes(folded(as_batches((X[:1], Y[:1]), 4, least=2), 2)) == [1]
    ones = [(x[None], y[None]) for x, y in zip(X, Y, strict=True)]
    assert sizes(folded(ones, 2)) == [1] * 7  # online: somebody wants it so
    small = [(X[:3], Y[:3]), (X[3:4], Y[3:4]), (X[4:], Y[4:])]
    assert sizes(folded(small, 2)) == [4, 3]


def test_looking_ahead_only_where_it_is_needed():
    dataset = TensorDataset(X, Y)
    assert has_small_rest(DataLoader(dataset, 3), 2)
    assert not has_small_rest(DataLoader(dataset, 3, drop_last=True), 2)
    assert not has_small_rest(DataLoader(dataset, 4), 2)
    assert not has_small_rest(DataLoader(dataset, 3), 1)
    assert not has_small_rest(as_batches((X, Y), 3, least=2), 2)
    assert has_small_rest([], 2)


class NoLength(Dataset):
    def __getitem__(self, i):
        return X[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_streams():
    for data in (Stream(), DataLoader(Stream(), 3)):
        assert sizes(as_batches(data, 3)) == [3, 3, 1]
        assert sizes(folded(as_batches(data, 3), 2)) == [3, 4]
        assert torch.equal(gather(as_batches(data, 3))[0], X)
        assert count_examples(as_batches(data, 3)) is None


def test_examples_are_counted_where_the_data_say_so():
    dataset = TensorDataset(X, Y)
    assert count_examples(as_batches((X, Y), 3, least=2)) == 7
    assert count_examples(DataLoader(dataset, 3, drop_last=True)) == 7
    twice = RandomSampler(dataset, replacement=True, num_samples=14)
    assert count_examples(DataLoader(dataset, 3, sampler=twice)) == 14
    assert count_examples([(X, Y), (X[:2], Y[:2])]) == 9
    assert count_examples(with_target(DataLoader(dataset, 3), "y")) == 7
    assert count_examples(map(tuple, [(X, Y)])) is None


def test_batches_without_shuffling_move_no_generator():
    state = torch.get_rng_state()
    list(as_batches((X, Y), 3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_data_is_refused():
    with pytest.raises(DataError, match="an iterator is used up after one pass"):
        as_batches(iter([(X, Y)]))
    with pytest.raises(DataError, match="got int"):
        as_batches(3)
    with pytest.raises(ShapeError, match=r"one length, got \[7, 6\]"):
        as_batches((X, Y[:6]))
    with pytest.raises(DataError, match="there is no batch"):
        gather([])
    for bad in (0, -1, 1.5):
        with pytest.raises(OptionError, match="batch_size must be at least 1"):
            as_batches((X, Y), bad)
    with pytest.raises(DataError, match="NoLength is a Dataset without a length"):
        as_batches(NoLength())


@pytest.mark.usefixtures("unchecked")
def test_integers_of_numpy_and_torch_are_batch_sizes():
    for three in (np.int64(3), torch.tensor(3)):
        assert [len(x) for x, _ in as_batches(FORMS["tensors"], three)] == [3, 3, 1]
