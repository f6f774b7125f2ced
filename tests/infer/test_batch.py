"""What a batch may be: tensors, structures of them, and objects that move themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.infer.batch import MiniBatch, batch_length, joined, split
from pyronorm.infer.data import as_batches, gather

X, Y, W = torch.arange(14.0).view(7, 2), torch.arange(7), torch.ones(7)


class Graphs:
    """Looks like a batch of torch_geometric: it moves in place, and knows how many graphs it has."""

    def __init__(self, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor, y) -> None:
        self.x, self.edge_index, self.batch, self.y = x, edge_index, batch, y
        self.num_graphs = int(batch.max()) + 1

    def __iter__(self):
        return iter(vars(self).items())

    def apply(self, function):
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, function(value))
        return self

    def to(self, device):
        return self.apply(lambda tensor: tensor.to(device))


class Moved:
    """An object of another library: a method ``to``, and nothing else that anybody knows."""

    num_graphs = 4

    def __init__(self, x: torch.Tensor, batch: torch.Tensor, y) -> None:
        self.x, self.batch, self.y = x, batch, y

    def to(self, device):
        return Moved(self.x.to(device), self.batch.to(device), self.y)


def graphs(number: int = 4, seed: int = 0, nodes: bool = False) -> Graphs:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 6, (number,), generator=generator)
    batch = torch.arange(number).repeat_interleave(sizes)
    x = torch.randn(len(batch), 3, generator=generator)
    edges = torch.stack([torch.arange(len(batch)), torch.arange(len(batch)).roll(1)])
    y = torch.randint(2, (len(batch) if nodes else number,), generator=generator)
    return Graphs(x, edges, batch, y)


class GraphNet(nn.Module):
    """A layer of messages, normalized over nodes, and the mean over a graph."""

    def __init__(self, norm=nn.BatchNorm1d, nodes: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), norm(8), nn.Linear(8, 2)
        self.nodes = nodes

    def forward(self, data):
        h = self.first(data.x)
        if hasattr(data, "edge_index"):
            source, target = data.edge_index
            h = h + torch.zeros_like(h).index_add(0, target, h[source])
        h = self.norm(h).relu()
        if not self.nodes:
            count = torch.bincount(data.batch)[:, None]
            total = torch.zeros(len(count), 8).to(h).index_add(0, data.batch, h)
            h = total / count
        return self.last(h)


def lists() -> list[Graphs]:
    return [graphs(4, 0), graphs(4, 1), graphs(1, 2)]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_batches_of_graphs(norm):
    """In training, statistics, prediction, metrics and export; examples are graphs."""
    torch.manual_seed(0)
    model = pn.NormalizationModel(
        pn.convert(GraphNet(norm)), pn.likelihoods.Categorical(), num_data=9
    )
    guide = pn.guides.MeanField(model)
    data = pn.with_target(lists(), "y")
    history = pn.fit(model, guide, data, epochs=2, validation=pn.Validation(data), progress=False)
    assert len(history.losses) == 2
    prediction = pn.predict(model, guide, lists(), 5, seed=0)
    assert prediction.mean.shape == (9, 2)
    draws = guide.draw(model, 5, seed=0)
    model.eval()
    expected = torch.cat(
        [
            torch.stack(
                [
                    model.network(g, shift, scale).softmax(-1)
                    for shift, scale in zip(draws.shift, draws.scale, strict=True)
                ]
            ).mean(0)
            for g in lists()
        ]
    )
    torch.testing.assert_close(prediction.mean, expected)
    metrics = pn.evaluate(model, guide, data, 5, seed=0)
    assert metrics["nll"] == pytest.approx(
        prediction.metrics(torch.cat([g.y for g in lists()]))["nll"]
    )
    one = graphs(9, 5)
    idata = pn.to_arviz(model, guide, (one, one.y), num_samples=4)
    assert idata["log_likelihood"]["y"].shape == (1, 4, 9)
    chains = pn.run_nuts(model, (one, one.y), 4, 2, 1, progress=False)
    assert len(chains) == 4
    with pytest.raises(DataError, match="cannot be joined. .* give one batch"):
        pn.to_arviz(model, guide, data, num_samples=4)


def test_population_statistics_are_over_nodes():
    model = pn.NormalizationModel(pn.convert(GraphNet()), pn.likelihoods.Categorical(), 9)
    pn.estimate_population_statistics(model, lists())
    layer = model.network.network
    with torch.no_grad():
        h = []
        for g in lists():
            first = layer.first(g.x)
            h.append(
                first
                + torch.zeros_like(first).index_add(0, g.edge_index[1], first[g.edge_index[0]])
            )
    nodes = torch.cat(h)
    torch.testing.assert_close(layer.norm.running_mean, nodes.mean(0))
    torch.testing.assert_close(layer.norm.running_var, nodes.var(0, correction=0))


def test_examples_may_be_nodes():
    """What y counts is what num_data counts: a loader's number of graphs is not asked for."""
    data = [graphs(4, seed, nodes=True) for seed in range(2)]
    nodes = sum(len(g.y) for g in data)
    loader = DataLoader(data, 1, collate_fn=lambda one: (one[0], one[0].y))
    model = pn.NormalizationModel(
        pn.convert(GraphNet(nodes=True)), pn.likelihoods.Categorical(), nodes
    )
    guide = pn.guides.Point(model)
    pn.fit(model, guide, loader, epochs=1, progress=False)
    assert len(pn.predict(model, guide, data).mean) == nodes
    other = pn.NormalizationModel(model.network, pn.likelihoods.Categorical(), 2)
    with pytest.raises(OptionError, match=f"the number of batches; the data have {nodes} examples"):
        pn.fit(other, guide, loader, epochs=1, progress=False)


def test_objects_move_themselves_and_stay_as_they_are():
    network = pn.LatentNetwork(pn.convert(GraphNet(nn.LayerNorm)).double())
    given = graphs()
    before = copy.deepcopy(vars(given))
    moved = network.prepare(given)
    assert (moved.x.dtype, moved.edge_index.dtype) == (torch.float64, torch.int64)
    assert all(
        torch.equal(torch.as_tensor(before[k]), torch.as_tensor(v)) for k, v in vars(given).items()
    )
    assert given.x.dtype == torch.float32
    other = Moved(given.x.double(), given.batch, given.y)
    assert network(network.prepare(other)).shape == (4, 2)
    assert network(network.prepare({"data": given})).shape == (4, 2)


def test_what_needs_examples_says_so():
    model = pn.NormalizationModel(pn.convert(GraphNet()), pn.likelihoods.Categorical(), 9, draws=2)
    one = graphs(9)
    pn.estimate_population_statistics(model, one)
    with pytest.raises(ShapeError, match="Graphs, which cannot be cut into examples"):
        pn.collect_bank(model, lists())
    channels = model.space.num_channels
    with pytest.raises(ShapeError, match="Graphs, which cannot be cut into examples"):
        model.network(one, torch.zeros(9, channels), torch.ones(9, channels))
    layer = pn.convert(GraphNet(nn.LayerNorm))
    several = pn.NormalizationModel(layer, pn.likelihoods.Categorical(), 9, draws=2)
    with pytest.raises(ShapeError, match="Graphs, which cannot be cut into examples"):
        pn.fit(several, pn.guides.MeanField(several), (one, one.y), epochs=1, progress=False)


class Recurrent(nn.Module):
    """Sequences of unequal length; statistics are of the positions there are."""

    def __init__(self, every_position: bool = False) -> None:
        super().__init__()
        self.norm, self.rnn, self.last = nn.BatchNorm1d(3), nn.GRU(3, 5), nn.Linear(5, 2)
        self.every_position = every_position

    def forward(self, packed: PackedSequence):
        packed = packed._replace(data=self.norm(packed.data))
        output, hidden = self.rnn(packed)
        return self.last(output.data if self.every_position else hidden[0])


def sequences() -> tuple[list[torch.Tensor], PackedSequence]:
    generator = torch.Generator().manual_seed(4)
    some = [torch.randn(n, 3, generator=generator) for n in (3, 7, 5, 4)]
    return some, pack_sequence(some, enforce_sorted=False)


def test_packed_sequences():
    torch.manual_seed(0)
    some, packed = sequences()
    y = torch.tensor([0, 1, 0, 1])
    model = pn.NormalizationModel(pn.convert(Recurrent()), pn.likelihoods.Categorical(), 4)
    guide = pn.guides.MeanField(model)
    pn.fit(model, guide, [(packed, y)], epochs=2, progress=False)
    layer = model.network.network.norm
    torch.testing.assert_close(layer.running_mean, torch.cat(some).mean(0))
    torch.testing.assert_close(layer.running_var, torch.cat(some).var(0, correction=0))
    together = pn.predict(model, guide, packed, 6, seed=0).mean
    alone = [pn.predict(model, guide, pack_sequence([one]), 6, seed=0).mean for one in some]
    torch.testing.assert_close(together, torch.cat(alone))
    assert pn.evaluate(model, guide, (packed, y), 6)["nll"] > 0
    prepared = model.network.prepare(packed._replace(data=packed.data.double()))
    assert prepared.data.dtype == torch.float32
    assert torch.equal(pad_packed_sequence(prepared)[1], pad_packed_sequence(packed)[1])


def test_positions_of_packed_sequences_as_examples():
    some, packed = sequences()
    y = pack_sequence([(x[:, 0] > 0).long() for x in some], enforce_sorted=False).data
    model = pn.NormalizationModel(pn.convert(Recurrent(True)), pn.likelihoods.Categorical(), len(y))
    guide = pn.guides.Point(model)
    pn.fit(model, guide, [(packed, y)], epochs=1, progress=False)
    assert pn.predict(model, guide, packed).mean.shape == (len(y), 2)


class WithPlaces(nn.Module):
    """Masked positions have no part in the statistics: only those there are are normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x, mask):
        normalized = torch.zeros_like(x)
        normalized[mask] = self.norm(x[mask])
        return self.last(normalized.sum(1) / mask.sum(1, keepdim=True))


def test_masked_positions_leave_statistics_alone():
    some, _ = sequences()
    x = nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=100.0)
    mask = torch.arange(7) < torch.tensor([len(one) for one in some])[:, None]
    y = torch.tensor([0, 1, 0, 1])
    model = pn.NormalizationModel(pn.convert(WithPlaces()), pn.likelihoods.Categorical(), 4)
    guide = pn.guides.MeanField(model)
    pn.fit(model, guide, ((x, mask), y), epochs=2, progress=False)
    torch.testing.assert_close(model.network.network.norm.running_mean, torch.cat(some).mean(0))
    together = pn.predict(model, guide, {"x": x, "mask": mask}, 6, seed=0).mean
    other = {"x": torch.where(mask[..., None], x, -7.0), "mask": mask}
    torch.testing.assert_close(pn.predict(model, guide, other, 6, seed=0).mean, together)
    with pytest.raises(ShapeError, match=r"WithPlaces takes \(.*x, mask\), got 1 input"):
        pn.predict(model, guide, (x, mask))
    with pytest.raises(ShapeError, match=r"got the keys \['x', 'where'\]"):
        pn.predict(model, guide, {"x": x, "where": mask})


def test_reading_a_batch():
    assert split(X) == (X, None, None)
    assert split([X, Y]) == (X, Y, None)
    assert split((X, Y, W)) == (X, Y, W)
    inside = split([[X, X], Y])
    assert inside.x == (X, X)
    graph = graphs()
    assert split(graph).x is graph
    assert split((graph, graph.y)).y is graph.y
    _, packed = sequences()
    assert split(packed).x is packed
    arrays = split((X.numpy(), Y.numpy()))
    assert torch.equal(arrays.x, X)
    assert torch.equal(arrays.y, Y)
    batch = MiniBatch({"a": X}, Y)
    assert split(batch) is batch
    assert batch.arguments() == ({"a": X}, Y)
    some = MiniBatch((X, X), Y, W).rows(2, 3)
    assert batch_length(some) == len(some.x[1]) == len(some.y) == len(some.weight) == 3


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_batch_is_refused():
    import numpy as np

    for bad, named in (
        ({"x": "text"}, "dict"),
        ((), r"\[\]"),
        ((X, Y, W, W), r"\['Tensor', 'Tensor', 'Tensor', 'Tensor'\]"),
        ((X[0], Y[0]), r"\['Tensor', 'Tensor'\]"),  # an example
        ((X, [0] * 7), r"\['Tensor', 'list'\]"),
        ((np.zeros((7, 2)), np.zeros(())), r"\['Tensor', 'Tensor'\]"),
    ):
        with pytest.raises(DataError, match=f"a batch must be x, .*; got {named}"):
            split(bad)
    with pytest.raises(DataError, match=r"Several inputs are a tuple in a pair: \(\(a, b\), y\)"):
        split((X, X, Y))
    with pytest.raises(DataError, match=r"one structure, got .*\['a'\], \['b'\]"):
        joined([{"a": X}, {"b": X}])


class OnDevice(Dataset):
    """A data set with a method ``to`` is a data set."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return X[i], Y[i]

    def to(self, device):
        return self


def test_lists_are_of_batches(unchecked):
    model = pn.NormalizationModel(pn.convert(nn.BatchNorm1d(2)), pn.likelihoods.Categorical(), 7)
    guide = pn.guides.Point(model)
    for examples in (
        [*zip(X, Y % 2, strict=True)],
        [*zip(X.numpy(), (Y % 2).tolist(), strict=True)],
    ):
        with pytest.raises(DataError, match="a list of examples batches by a DataLoader"):
            pn.fit(model, guide, examples, epochs=1, progress=False)
        pn.fit(model, guide, DataLoader(examples, 4), epochs=1, progress=False)
    with pytest.raises(DataError, match="there are no examples"):
        pn.fit(model, guide, (X[:0], Y[:0]), epochs=1, progress=False)


@dataclass
class Loader:
    """An iterable of batches with a method ``to`` is one, too."""

    size: int

    def __iter__(self):
        return iter([(X[: self.size], Y[: self.size]), (X[self.size :], Y[self.size :])])

    def to(self, device):
        return self


def test_objects_that_hold_data_are_no_batches():
    assert [len(split(batch).x) for batch in as_batches(OnDevice(), 4)] == [4, 3]
    assert torch.equal(gather(Loader(3)).y, Y)
    assert len(list(as_batches(graphs()))) == 1
    _, packed = sequences()
    assert len(list(as_batches((packed, torch.arange(4))))) == 1


def test_examples_on_another_axis_are_refused_with_the_fix():
    """Sequences first, or a tensor that is shared: the message says how to wrap the network."""
    x, y = torch.randn(5, 8, 3), torch.randint(2, (8,))
    fix = r"wrap it in a module that takes examples first, moves the axis \(x.transpose\(0, 1\)\)"
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), 8)
    guide = pn.guides.Point(model)
    with pytest.raises(ShapeError, match=fix):
        pn.fit(model, guide, (x, y), epochs=1, progress=False)
    several = pn.NormalizationModel(pn.convert(WithPlaces()), pn.likelihoods.Categorical(), 8)
    with pytest.raises(ShapeError, match=fix):
        pn.fit(
            several,
            pn.guides.Point(several),
            [((x, torch.ones(3)), y)],
            epochs=1,
            progress=False,
        )

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.rnn = nn.LayerNorm(3), nn.GRU(3, 2)

        def forward(self, x):
            return self.rnn(self.norm(x))[1][0]

    wrong = pn.NormalizationModel(pn.convert(TimeFirst()), pn.likelihoods.Categorical(), 8)
    with pytest.raises(ShapeError, match=fix):
        pn.fit(wrong, pn.guides.Point(wrong), [(x, y)], epochs=1, progress=False)
