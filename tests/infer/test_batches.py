"""Training's batches: every pass complete, and from any place within one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyronorm import NormalizationModel, convert
from pyronorm.errors import DataError, OptionError
from pyronorm.infer.batches import TrainingBatches
from pyronorm.infer.generators import Generators
from pyronorm.infer.processes import Processes
from pyronorm.likelihoods import Categorical
from tests.nets import mlp

N = 21
X = torch.arange(N, dtype=torch.float64)[:, None].expand(N, 5)
Y = torch.arange(N)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X.float(), Y, strict=True))


FORMS = {
    "tensors": lambda: (X, Y),
    "dataset": lambda: TensorDataset(X, Y),
    "loader": lambda: DataLoader(
        TensorDataset(X, Y), 4, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "stream": lambda: DataLoader(Stream(), 4),
}


def make(form, seed=3, num_data=N, least=1, data=None):
    model = NormalizationModel(convert(mlp()), Categorical(), num_data)
    data = FORMS[form]() if data is None else data
    return TrainingBatches(data, model, 4, seed, least, Processes())


def ids(pairs):
    return [pair.y.tolist() for pair in pairs]


@pytest.mark.parametrize("form", FORMS)
def test_a_pass_has_every_pair_once(form):
    batches, generators = make(form), Generators(3, torch.device("cpu"))
    assert batches.total in (6, None)
    with generators.use():
        pairs = list(batches.run_through(generators))
    assert sorted(i for batch in ids(pairs) for i in batch) == list(range(N))
    for x, y in ((pair.x, pair.y) for pair in pairs):
        assert x.dtype == torch.float32  # the network's
        assert torch.equal(x[:, 0].long(), y)
    assert batches.position == 6
    batches.finish()
    assert batches.position == 0


def test_a_rest_joins_the_batch_before_it():
    batches, generators = make("tensors", least=2), Generators(3, torch.device("cpu"))
    with generators.use():
        sizes = [len(pair.y) for pair in batches.run_through(generators)]
    assert sizes == [4, 4, 4, 4, 5]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [0, 2, 6])
def test_a_pass_goes_on_where_it_was(form, given):
    """As after a checkpoint: what was stored within a pass gives the rest of it, and the next one."""
    cpu = torch.device("cpu")
    batches, generators = make(form), Generators(3, cpu)
    with generators.use():
        rest = batches.run_through(generators)
        for _ in range(given):
            next(rest)
            torch.rand(())  # training draws, too
        stored = copy.deepcopy(batches.state(generators)) if given else None
        expected = ids(rest)
        batches.finish()
        expected_next = ids(batches.run_through(generators))
    if stored is None:
        return
    again, others = make(form), Generators(8, cpu)
    with others.use():
        assert again.restore(stored, others)
        assert ids(again.run_through(others)) == expected
        again.finish()
        assert ids(again.run_through(others)) == expected_next


def test_a_state_between_passes_has_nothing_left():
    cpu = torch.device("cpu")
    batches, generators = make("loader"), Generators(3, cpu)
    with generators.use():
        list(batches.run_through(generators))
        batches.finish()
        stored = copy.deepcopy(batches.state(generators))
        expected = ids(batches.run_through(generators))
    again, others = make("loader"), Generators(8, cpu)
    with others.use():
        assert not again.restore(stored, others)
        assert ids(again.run_through(others)) == expected


def test_the_first_batch():
    assert make("tensors").first().y.shape == (4,)
    with pytest.raises(DataError, match="train_data has no batch"):
        make("tensors", data=[]).first()


def test_refusals():
    generators = Generators(3, torch.device("cpu"))
    with pytest.raises(DataError, match="train_data has no batch"):
        list(make("tensors", data=[]).run_through(generators))
    with pytest.raises(DataError, match="x alone"):
        list(make("tensors", data=[X]).run_through(generators))
    with pytest.raises(OptionError, match="num_data"):
        make("loader", num_data=6)


def test_a_stream_is_counted_in_its_first_pass():
    generators = Generators(3, torch.device("cpu"))
    batches = make("stream", num_data=30)
    with pytest.warns(UserWarning, match="num_data=30, but an epoch has 21 examples"):
        list(batches.run_through(generators))
    batches.finish()
    list(batches.run_through(generators))  # and said once
    with pytest.raises(OptionError, match="num_data"):
        list(make("stream", num_data=6).run_through(generators))
