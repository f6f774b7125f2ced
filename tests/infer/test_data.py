from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyronorm import LatentNetwork, convert
from pyronorm.errors import DataError, ShapeError
from pyronorm.infer.data import as_batches, evaluation_mode, gather, inputs, kept_modes, split

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
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), X)
    assert torch.equal(torch.cat([y for _, y in batches]), Y)
    x, y = gather(FORMS[form])
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_inputs_alone():
    assert [len(x) for x in inputs(X, LatentNetwork(convert(nn.BatchNorm1d(2))), 4)] == [4, 3]
    assert gather(X)[1] is None
    assert split([X]) == (X, None)


@pytest.mark.parametrize("form", ["tensors", "data set", "own data set"])
def test_shuffling_keeps_pairs_and_leaves_out_a_rest_of_one(form):
    torch.manual_seed(1)
    batches = [split(b) for b in as_batches(FORMS[form], batch_size=3, shuffle=True)]
    assert [len(x) for x, _ in batches] == [3, 3]  # one example has no batch statistics
    for x, y in batches:
        assert torch.equal(x[:, 0], 2.0 * y)
    assert torch.cat([y for _, y in batches]).tolist() != list(range(6))
    assert sum(len(split(b)[0]) for b in as_batches(FORMS[form], 4, shuffle=True)) == 7


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_data_is_refused():
    with pytest.raises(DataError, match="an iterator is used up after one pass"):
        as_batches(iter([(X, Y)]))
    with pytest.raises(DataError, match="got int"):
        as_batches(3)
    with pytest.raises(ShapeError, match=r"one length, got \[7, 6\]"):
        as_batches((X, Y[:6]))
    with pytest.raises(DataError, match=r"a pair \(x, y\), got \['Tensor', 'Tensor', 'Tensor'\]"):
        split((X, Y, Y))
    with pytest.raises(DataError, match="got dict"):
        split({"x": X})
    with pytest.raises(DataError, match="there is no batch"):
        gather([])


def test_modes_are_given_back_to_every_module():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    network[1][0].eval()
    before = [m.training for m in network.modules()]
    with evaluation_mode(network):
        assert not any(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == before
    with pytest.raises(ZeroDivisionError), kept_modes(network):
        network.train()
        1 / 0  # noqa: B018
    assert [m.training for m in network.modules()] == before
