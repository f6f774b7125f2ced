"""Activation checkpointing: latents reach what runs again in the backward pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyronorm as pn
from pyronorm.conversion import convert
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import Analytic, Batch, Group, Population, Weight
from pyronorm.normalizers.handover import handed_over


class Block(nn.Module):
    def __init__(self, width: int, inner: nn.Module | None = None, reentrant=None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.inner = inner
        self.reentrant = reentrant

    def body(self, x):
        y = torch.tanh(self.norm(self.linear(x)))
        return y if self.inner is None else self.inner(y)

    def forward(self, x):
        if self.reentrant is None:
            return x + self.body(x)
        return x + checkpoint(self.body, x, use_reentrant=self.reentrant)


class Net(nn.Module):
    """Blocks between plain layers; the checkpoints can be switched."""

    def __init__(self, nested: bool = False) -> None:
        super().__init__()
        self.start = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.blocks = nn.ModuleList([Block(5, Block(5) if nested else None) for _ in range(3)])
        self.end = nn.Linear(5, 2)

    def set(self, reentrant) -> None:
        for module in self.modules():
            if isinstance(module, Block):
                module.reentrant = reentrant

    def forward(self, x):
        x = self.norm(self.start(x))
        for block in self.blocks:
            x = block(x)
        return self.end(x)


NORMALIZERS = [Batch(), Population(), Group(1), Weight(), Analytic()]


def build(normalizer=None, nested: bool = False) -> LatentNetwork:
    torch.manual_seed(1)
    net = Net(nested).double()
    for _ in range(3):
        net(torch.randn(20, 3, dtype=torch.double))
    example = torch.randn(4, 3, dtype=torch.double)
    network = convert(net.eval(), normalizer or Batch(), example_input=example)
    return LatentNetwork(network).train()


def latents(network: LatentNetwork, *batch: int) -> list[torch.Tensor]:
    size = (*batch, network.space.num_channels)
    loc = (0.3 * torch.randn(size, dtype=torch.double)).requires_grad_()
    log = (0.3 * torch.randn(size, dtype=torch.double)).requires_grad_()
    return [loc, log]


def gradients(network, reentrant, evaluate, wanted) -> list[torch.Tensor | None]:
    network.network.set(reentrant)
    for tensor in wanted:
        tensor.grad = None
    evaluate().backward()
    return [None if t.grad is None else t.grad.clone() for t in wanted]


def assert_equal_gradients(network, evaluate, others) -> None:
    wanted = [*others, *network.parameters()]
    plain = gradients(network, None, evaluate, wanted)
    assert all(g is not None for g in plain[: len(others)])
    for reentrant in (True, False):
        for a, b in zip(gradients(network, reentrant, evaluate, wanted), plain, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (6,)])
@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda n: type(n).__name__)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the inner one
def test_gradients_equal_those_of_the_plain_network(normalizer, batch, nested):
    network = build(normalizer, nested)
    x = torch.randn(6, 3, dtype=torch.double)
    loc, log = latents(network, *batch)
    # More than one way to the leaves: a term as of a prior, and nodes that save their inputs.
    target = torch.randn(6, 2, dtype=torch.double)

    def evaluate():
        shift, scale = loc * loc.abs().sqrt(), log.exp()
        output = network(x, shift, scale)
        return (output - target).square().sum() + (shift.square() * scale).sum()

    assert_equal_gradients(network, evaluate, [loc, log])


def test_leaves_as_latents():
    network = build()
    x = torch.randn(6, 3, dtype=torch.double)
    loc, log = latents(network)
    scale = log.detach().exp().requires_grad_()
    assert_equal_gradients(network, lambda: network(x, loc, scale).square().sum(), [loc, scale])


def test_several_calls_before_one_backward_pass():
    network = build()
    x, other = torch.randn(2, 6, 3, dtype=torch.double)
    first, second = latents(network), latents(network)

    def evaluate():
        a = network(x, first[0].sin(), first[1].exp())
        b = network(other, second[0].sin(), second[1].exp())
        return (a * b).sum() + network(x, first[0] * 2, second[1].exp()).square().sum()

    assert_equal_gradients(network, evaluate, [*first, *second])


@pytest.mark.parametrize("samples_per_call", [None, 1, 3])
def test_many_draws(samples_per_call):
    network = build()
    network.samples_per_call = samples_per_call
    x = torch.randn(6, 3, dtype=torch.double)
    loc, log = latents(network, 4, 1)
    assert_equal_gradients(network, lambda: network(x, loc.sin(), log.exp()).square().sum(), [loc])


def test_two_backward_passes_through_one_graph():
    network = build()
    x = torch.randn(6, 3, dtype=torch.double)
    loc, log = latents(network)
    results = []
    for reentrant in (None, True, False):
        network.network.set(reentrant)
        loc.grad = None
        loss = network(x, loc.sin(), log.exp()).square().sum()
        loss.backward(retain_graph=True)
        once = loc.grad.clone()
        loss.backward()
        torch.testing.assert_close(loc.grad, 2 * once)
        results.append(once)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@dataclass
class Output:
    value: torch.Tensor
    name: str = "output"


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda y: {"a": y, "b": [y * 2, None]}, lambda o: o["b"][0]),
        (lambda y: (y, {"c": y.sin()}), lambda o: o[1]["c"]),
        (lambda y: Output(y * 2), lambda o: o.value),
    ],
)
def test_outputs_that_are_not_a_tensor(wrap, unwrap):
    network = build()
    x = torch.randn(6, 3, dtype=torch.double)
    loc, log = latents(network)

    def evaluate():
        with handed_over(network._latents(loc.sin(), log.exp())) as call:
            output = wrap(network.network(x))
        return unwrap(call.kept(output)).square().sum()

    assert_equal_gradients(network, evaluate, [loc, log])


def test_nothing_is_left_after_the_backward_pass():
    network = build()
    x = torch.randn(6, 3, dtype=torch.double)
    loc, log = latents(network)
    for reentrant in (True, False):
        network.network.set(reentrant)
        loss = network(x, loc, log.exp()).square().sum()
        loss.backward()
        neutral = network.network(x)
        torch.testing.assert_close(neutral, network(x))
        # The bare network, checkpointed, runs again without latents while that graph lives.
        weights = [p for p in network.parameters() if p.requires_grad]
        found = torch.autograd.grad(
            _with(network, False, lambda: network.network(x).square().sum()), weights
        )
        plain = torch.autograd.grad(
            _with(network, None, lambda: network.network(x).square().sum()), weights
        )
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b)


def _with(network, reentrant, function):
    network.network.set(reentrant)
    return function()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # without gradients
def test_training_by_the_elbo_is_the_plain_one():
    x = torch.randn(64, 3)
    y = (x[:, 0] > 0).long()
    found = []
    for reentrant in (None, True, False):
        torch.manual_seed(0)
        net = Net()
        net.set(reentrant)
        model = pn.NormalizationModel(convert(net), pn.likelihoods.Categorical(), num_data=64)
        guide = pn.guides.MeanField(model, init_std=0.5)
        pn.fit(model, guide, (x, y), epochs=3, batch_size=16, lr=0.01, seed=1, progress=False)
        found.append([*copy.deepcopy(guide).parameters(), *copy.deepcopy(model).parameters()])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
