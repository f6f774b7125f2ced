"""Draws folded into the axis of examples give what one draw after the other gives, or are not folded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.latents import folding
from pyronorm.testing import networks as small

KINDS = {
    "batch": None,
    "population": pn.normalizers.Population(),
    "group": pn.normalizers.Group(3),
    "layer": pn.normalizers.Layer(),
    "rms": pn.normalizers.RMS(),
    "instance": pn.normalizers.Instance(),
    "weight": pn.normalizers.Weight(),
    "analytic": pn.normalizers.Analytic(),
    "whitening": pn.normalizers.BatchWhitening(2),
    "group whitening": pn.normalizers.GroupWhitening(2),
}


def folds(network: pn.LatentNetwork) -> bool:
    known = network._folding._known
    return known is not None and known[1] is not None


def check(network: pn.LatentNetwork, x, draws: int = 5, examples: int = 1) -> None:
    """Many draws, all of them in one call if that can be, against a loop."""
    shift, scale = small.latents(network, draws, examples)
    with torch.no_grad():
        loop = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
        torch.testing.assert_close(network(x, shift, scale), loop)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_normalizers(kind, dims):
    torch.manual_seed(0)
    x, plain = small.data(dims), small.original(dims, deep=True)
    small.settle(plain, x)
    try:
        converted = pn.convert(plain.eval(), KINDS[kind], example_input=x)
        network = pn.LatentNetwork(converted).eval()
        if kind == "whitening":
            pn.estimate_population_statistics(network, x)
        else:
            pn.trust_statistics(converted)
        network(x)
    except pn.errors.PyronormError as error:
        pytest.skip(str(error))  # instance normalization without positions, say
    for examples in (1, small.BATCH):
        check(network, x, examples=examples)
        assert folds(network)


@pytest.mark.parametrize(("limit", "largest"), [(1, 13), (2**9, 13), (2**13, 37), (2**15, 5 * 37)])
@pytest.mark.parametrize("examples", [1, 37])
def test_parts_of_any_size(monkeypatch, limit, largest, examples):
    torch.manual_seed(0)
    itemsize = small.data(2, batch=1).itemsize
    monkeypatch.setattr(folding, "_CPU_BYTES", limit * itemsize)
    monkeypatch.setattr(folding, "_CPU_THREADS", 1)
    plain = small.original(2, deep=True)
    network = pn.LatentNetwork(pn.convert(plain.eval(), pn.normalizers.Group(2)))
    sizes = []
    network.network.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    check(network, small.data(2, batch=37), examples=examples)
    assert folds(network)
    rows = sizes[8:]  # after a loop of 5, and a try
    assert sum(rows) == 5 * 37
    assert max(rows) == largest


class Mixing(nn.Module):
    """A network with something in front of or behind its normalization."""

    def __init__(self, before=lambda x: x, behind=lambda x: x) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.before, self.behind = before, behind

    def forward(self, x):
        return self.head(self.behind(self.norm(self.linear(self.before(x)))).tanh())


class Times(nn.Module):
    """Examples on the second axis inside, positions on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        return self.norm(x.transpose(0, 1)).tanh().transpose(0, 1)


MIXERS = {
    "mean of inputs": (lambda x: x - x.mean(0), lambda x: x),
    "mean": (lambda x: x, lambda x: x - x.mean(0)),
    "median": (lambda x: x, lambda x: x - x.median(0).values),
    "softmax over examples": (lambda x: x, lambda x: x.softmax(0)),
    "neighbour": (lambda x: x, lambda x: x + x.roll(1, 0)),
    "order": (lambda x: x, lambda x: x.flip(0)),
    "variance": (lambda x: x, lambda x: x * x.var(0, correction=0)),
    "position": (lambda x: x, lambda x: x * torch.arange(1.0, 1 + len(x)).to(x)[:, None]),
    "a branch": (lambda x: x, lambda x: x if x.sum().item() > -1e9 else -x),
    "a branch on a condition": (lambda x: x, lambda x: x if (x > -1e9).all() else -x),
    "numpy": (lambda x: x, lambda x: x + float(x.detach().numpy().max() > 1e9)),
    "values of its shape": (lambda x: x, lambda x: x * len(x[x[:, 0] > 0])),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_networks_that_mix_examples_are_not_folded(name, batch):
    torch.manual_seed(0)
    network = pn.LatentNetwork(pn.convert(Mixing(*MIXERS[name]).double()))
    check(network, small.data(0, batch=batch))
    if batch > 1:
        assert not folds(network)


@pytest.mark.parametrize("length", [2, 3, 4, 10])
def test_examples_on_another_axis_inside(length):
    """As many positions as rows, or not."""
    torch.manual_seed(0)
    network = pn.LatentNetwork(pn.convert(Times().double()))
    check(network, torch.randn(2, length, 5, dtype=torch.double))
    assert not folds(network)


def test_a_batch_normalization_left_in_training_mode_is_not_folded():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.BatchNorm1d(6)).double()
    converted = pn.convert(network, pn.normalizers.Layer(), only=["1"])
    latent = pn.LatentNetwork(converted).eval()
    check(latent, small.data(0))
    assert folds(latent)
    converted[2].train()
    converted[2].momentum = 0.0
    latent._folding = folding.Folding()
    check(latent, small.data(0))
    assert not folds(latent)


def test_what_was_found_out_belongs_to_the_modes():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Dropout(0.5)).double()
    network = pn.LatentNetwork(pn.convert(plain)).eval()
    check(network, small.data(0))
    assert folds(network)
    network.train()  # dropout
    network(small.data(0), *small.latents(network, 3, 1))
    assert not folds(network)
    check(network.eval(), small.data(0))
    assert folds(network)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.cell = nn.Linear(5, 6), nn.LayerNorm(6), nn.GRU(6, 3)

    def forward(self, x, length):
        steps = self.norm(self.linear(x))[None].expand(3, -1, -1)
        return self.cell(steps)[0].mean(0) * length[:, None]


@pytest.mark.parametrize("pack", [tuple, lambda x: {"x": x[0], "length": x[1]}])
def test_several_inputs_and_a_recurrent_layer(pack):
    torch.manual_seed(0)
    network = pn.LatentNetwork(pn.convert(Two().double()))
    check(network, pack((small.data(0), torch.randint(1, 9, (small.BATCH,)))))
    assert folds(network)


def test_outputs_that_are_not_by_example():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)).double()
    network = pn.LatentNetwork(pn.convert(plain), output=lambda y: y.mean(0))
    check(network, small.data(0))
    assert not folds(network)


def test_random_numbers_are_where_they_were():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Dropout(0.5)).double()
    network, x = pn.LatentNetwork(pn.convert(plain)).train(), small.data(0)
    latents = small.latents(network, 3, 1)
    torch.manual_seed(1)
    first = network(x, *latents)
    torch.manual_seed(1)
    assert torch.equal(network(x, *latents), first)


def test_within_a_transform_nothing_is_found_out():
    torch.manual_seed(0)
    network = pn.LatentNetwork(pn.convert(Mixing().double()))
    x, (shift, scale) = small.data(0), small.latents(network, 2, 3, 1)
    expected = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
    network._folding = folding.Folding()
    found = torch.func.vmap(lambda a, b: network(x, a, b))(shift, scale)
    torch.testing.assert_close(found, expected)
    assert network._folding._known is None


@pytest.mark.parametrize("pixels", [1, 8])
def test_channels_innermost_is_only_for_networks_that_take_it(pixels):
    """Inputs that are viewed by the network."""

    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)

        def forward(self, x):
            return self.norm(self.conv(x)).view(len(x), -1)

    torch.manual_seed(0)
    network = pn.LatentNetwork(pn.convert(Viewed()))
    check(network, torch.randn(3, 3, 2, pixels))
    assert folds(network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_under_autocast(dtype):
    torch.manual_seed(0)
    plain = small.original(2, deep=True)
    network = pn.LatentNetwork(pn.convert(plain.to(dtype), pn.normalizers.Group(2)))
    x = small.data(2).to(dtype)
    shift, scale = small.latents(network, 5, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network(x, shift, scale)
        loop = torch.stack([network(x, *pair) for pair in zip(shift, scale, strict=True)])
    assert folds(network)
    torch.testing.assert_close(found, loop, rtol=0.05, atol=0.05)
