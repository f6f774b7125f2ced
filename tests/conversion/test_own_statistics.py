"""Layers whose statistics no normalizer has, written as public packages write them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm import LatentNetwork, conversion_report, convert
from pyronorm.conversion import Kind, own_statistics, register
from pyronorm.conversion.own_statistics import describe_own, has_own_statistics
from pyronorm.errors import ConversionError
from pyronorm.normalizers import Group, LatentNorm, Original

C = 6


class Affine(nn.Module):
    """A weight and a bias of random numbers."""

    def __init__(self, channels=C):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels))


def of_graphs(x, graph, function=torch.mean):
    """A statistic of each graph's nodes, for each node; ``graph`` is None for one graph."""
    graph = torch.zeros(len(x), dtype=torch.long) if graph is None else graph
    found = torch.stack([function(x[graph == g], 0) for g in range(int(graph.max()) + 1)])
    return found[graph]


class GraphNorm(Affine):
    """torch_geometric's: a learned share of the mean is taken off."""

    def __init__(self):
        super().__init__()
        self.mean_scale = nn.Parameter(torch.rand(C))

    def hat(self, x, batch=None):
        x = x - of_graphs(x, batch) * self.mean_scale
        return x / (of_graphs(x.square(), batch) + 1e-5).sqrt()

    def forward(self, x, batch=None, batch_size=None):
        return self.weight * self.hat(x, batch) + self.bias


class GraphLayerNorm(Affine):
    """torch_geometric's LayerNorm: over all nodes and channels of a graph."""

    def hat(self, x, batch=None):
        x = x - of_graphs(x, batch, lambda v, _: v.mean().expand(C))
        return x / (of_graphs(x, batch, lambda v, _: v.square().mean().expand(C)) + 1e-5).sqrt()

    forward = GraphNorm.forward


class GraphInstanceNorm(GraphLayerNorm):
    def __init__(self):
        super().__init__()
        self.weight = self.bias = None
        self.in_channels = C

    def hat(self, x, batch=None):
        x = x - of_graphs(x, batch)
        return x / (of_graphs(x.square(), batch) + 1e-5).sqrt()

    def forward(self, x, batch=None, batch_size=None):
        return self.hat(x, batch)


class EvoNorm2dS0(Affine):
    """A nonlinear numerator over the deviation of a group."""

    def __init__(self, groups=2):
        super().__init__()
        self.groups = groups
        self.v = nn.Parameter(torch.randn(C))

    def hat(self, x):
        parts = x.reshape(len(x), self.groups, -1)
        std = parts.var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt()
        return x * (x * self.v[:, None, None]).sigmoid() / std.expand_as(parts).reshape(x.shape)

    def forward(self, x):
        assert x.ndim == 4
        return self.hat(x) * self.weight[:, None, None] + self.bias[:, None, None]


class FilterResponseNormAct2d(Affine):
    """The root mean square of each channel, then an activation."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def hat(self, x):
        return x * x.square().mean((2, 3), keepdim=True).add(1e-5).rsqrt()

    def forward(self, x):
        return self.act(self.hat(x) * self.weight[:, None, None] + self.bias[:, None, None])


GRAPH = (torch.tensor([0, 1, 1, 0, 1, 2, 2, 1]),)
LAYERS = {
    "GraphNorm": (GraphNorm, GRAPH),
    "LayerNorm of graphs": (GraphLayerNorm, GRAPH),
    "InstanceNorm of graphs": (GraphInstanceNorm, GRAPH),
    "one graph": (GraphNorm, ()),
    "EvoNorm": (EvoNorm2dS0, ()),
    "FilterResponseNorm": (FilterResponseNormAct2d, ()),
}
for class_ in {c for c, _ in LAYERS.values()}:
    register(class_, own_statistics)


class Holder(nn.Module):
    """Calls a layer with further arguments."""

    def __init__(self, norm, args):
        super().__init__()
        self.norm, self.args = norm, args

    def forward(self, x):
        return self.norm(x, *self.args)


def case(name):
    torch.manual_seed(0)
    make, args = LAYERS[name]
    x = torch.randn(4, C, 3, 2) if "2d" in make.__name__ else torch.randn(8, C)
    return Holder(make(), args).eval(), 3 * x + 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_what_the_original_computes(name, training):
    original, x = case(name)
    network = convert(original).train(training)
    assert isinstance(network.norm, LatentNorm)
    assert network.norm.normalizer == Original()
    assert list(network.state_dict()) == list(original.state_dict())
    torch.testing.assert_close(network(x), original(x))
    for parameter in network.parameters():  # nothing of the original is kept but its code
        parameter.data.uniform_(0.5, 1.5)
    original.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x), original(x))
    (row,) = conversion_report(network).converted
    assert row.statistics == f"as {type(original.norm).__name__} takes them"


@pytest.mark.parametrize("name", LAYERS)
def test_latents_follow_the_definition(name):
    original, x = case(name)
    network = LatentNetwork(convert(original))
    norm = original.norm
    shift, scale = torch.randn(5, 1, C), torch.rand(5, 1, C) + 0.5
    ones = (1,) * (x.ndim - 2)

    def per_channel(value):
        return value.reshape(*value.shape[:-1], C, *ones) if ones else value

    w, b = (1, 0) if norm.weight is None else map(per_channel, (norm.weight, norm.bias))
    hat = norm.hat(x, *original.args)
    expected = w * per_channel(scale) * (hat + per_channel(shift)) + b
    expected = norm.act(expected) if hasattr(norm, "act") else expected
    torch.testing.assert_close(network(x, shift, scale), expected)  # many draws by vmap
    torch.testing.assert_close(network(x, shift[0, 0], scale[0, 0]), expected[0])
    if ones:  # a draw for each example; nodes are no examples
        s, t = torch.randn(2, 4, C), torch.rand(2, 4, C) + 0.5
        each = w * per_channel(t) * (hat + per_channel(s)) + b
        each = norm.act(each) if hasattr(norm, "act") else each
        torch.testing.assert_close(network(x, s, t), each)


def test_copies_pickles_and_gradients():
    original, x = case("GraphNorm")
    network = convert(original)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(other(x), network(x))
        other.norm.mean_scale.data.zero_()
        assert not torch.equal(other(x), network(x))
    network(x).square().sum().backward()
    original(x).square().sum().backward()
    for mine, theirs in zip(network.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert network.double()(x.double()).dtype == torch.float64


def test_training_and_prediction_with_graphs():
    original, _ = case("GraphNorm")
    network = nn.Sequential(nn.Linear(3, C), original, nn.Linear(C, 2))
    model = pn.NormalizationModel(convert(network), pn.likelihoods.Categorical(), num_data=8)
    guide = pn.guides.MeanField(model)
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    history = pn.fit(model, guide, (x, y), epochs=2, batch_size=8, progress=False)
    assert all(torch.tensor(history.losses).isfinite())
    shift, scale = torch.randn(6, 1, C), torch.rand(6, 1, C) + 0.5
    loop = torch.stack([model.network(x, *pair) for pair in zip(shift, scale, strict=True)])
    torch.testing.assert_close(model.network(x, shift, scale), loop)


def test_no_other_normalizer_takes_the_place():
    original, _ = case("EvoNorm")
    with pytest.raises(
        ConversionError, match="'norm' .* takes statistics of its own, which no other"
    ):
        convert(original, Group(2))


class NotAffine(Affine):
    """A weight inside of the nonlinearity."""

    def forward(self, x):
        return (nn.functional.normalize(x) * self.weight).tanh()


class Running(Affine):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_var", torch.ones(C))

    def forward(self, x):
        return x / self.running_var.sqrt() * self.weight + self.bias


class Grows(Affine):
    """What EvoNorm is without its activation."""

    def forward(self, x):
        return x * self.weight + self.bias


class Narrow(Affine):
    def forward(self, x):
        return (nn.functional.normalize(x) * self.weight).sum(-1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            NotAffine(),
            r"no weight and bias per channel that its output follows: .* differ by 0\.\d",
        ),
        (Running(), "keeps running statistics"),
        (Grows(), "does not normalize: its outputs grow with its inputs"),
        (Narrow(), "runs on no random input with 6 channels"),
        (nn.Dropout(), "has neither a weight nor a number of channels"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_none_is_refused(layer, message):
    with pytest.raises(ConversionError, match=message):
        own_statistics(layer)
    assert isinstance(describe_own(layer), str)


def test_public_classes_are_known_by_their_full_name():
    layer = GraphNorm()
    assert not has_own_statistics(layer)
    known = type("GraphNorm", (GraphNorm,), {"__module__": "torch_geometric.nn.norm.graph_norm"})
    assert has_own_statistics(known())
    assert isinstance(convert(known()).normalizer, Original)
    stays = type("EvoNorm2dS0", (Grows,), {"__module__": "timm.layers.evo_norm"})
    network = convert(nn.Sequential(stays(), nn.BatchNorm1d(C)))  # without its activation
    assert type(network[0]) is stays
    assert isinstance(own_statistics(layer), Kind)
