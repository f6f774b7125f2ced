"""The steps that are timed are those of Pyro's loss and gradient."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

import pyronorm as pn
from benchmarks.gpu import correctness, steps
from benchmarks.gpu.correctness import GUIDES, PRIORS, pyro_loss, small_network, with_gradients
from benchmarks.gpu.judging import judged, relative, worst
from benchmarks.gpu.noise import SameNoise
from benchmarks.gpu.objective import Objective

LIKELIHOODS = {
    "categorical": (pn.likelihoods.Categorical(), torch.tensor([3, 0, 1, 2])),
    "normal": (pn.likelihoods.Normal(0.5), torch.randn(4, 10, dtype=torch.float64)),
}


def build(guide="mean-field", prior="batch noise", likelihood="categorical"):
    torch.manual_seed(0)
    network = pn.convert(small_network(), pn.normalizers.Group(4))
    likelihood, y = LIKELIHOODS[likelihood]
    model = pn.NormalizationModel(network, likelihood, 1000, PRIORS[prior]).train()
    guide = GUIDES[guide](model)
    for parameter in guide.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.double(), guide.double(), torch.randn(4, 3, 16, 16).double(), y


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("guide", GUIDES)
def test_the_objective_is_pyros(guide, prior, likelihood):
    model, guide, x, y = build(guide, prior, likelihood)
    loss, gradients = with_gradients(model, guide, x, y, pyro_loss)
    found, found_gradients = with_gradients(model, guide, x, y, Objective)
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=0)
    assert worst(found_gradients, gradients) < 1e-10
    assert any(g is not None and g.norm() > 0 for g in gradients)


def test_the_weight_of_the_divergence_may_be_a_tensor():
    model, guide, x, y = build()
    values = []
    for weight in (0.0, torch.tensor(0.5), 1.0):
        with SameNoise(3):
            values.append(Objective(model, guide)(x, y, weight))
    torch.testing.assert_close(values[1], (values[0] + values[2]) / 2)
    assert values[2] > values[0]


def test_the_network_is_called_as_told_and_left_as_it_was():
    model, guide, x, y = build("point")
    plain = Objective(model, guide)(x, y)
    half = Objective(model, guide, lambda *a: 0.0 * type(model.network).forward(model.network, *a))
    assert half(x, y) != plain
    assert "forward" not in model.network.__dict__
    torch.testing.assert_close(Objective(model, guide)(x, y), plain)


def test_mixed_precision_is_in_the_network_alone():
    model, guide, x, y = build()
    model.float(), guide.float()
    seen = []
    model.network.network[0].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    loss = steps.elbo_loss(model, guide, torch.device("cpu"))(x.float(), y, torch.ones(()))
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    with SameNoise(1):
        mixed = steps.elbo_loss(model, guide, torch.device("cpu"))(x.float(), y, torch.ones(()))
    with SameNoise(1):
        exact = Objective(model, guide)(x.float(), y)
    torch.testing.assert_close(mixed, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("function", [torch.randn_like, lambda t: torch.empty_like(t).normal_()])
def test_noise_is_the_same_in_every_precision(function):
    with SameNoise(4):
        exact = [function(torch.zeros(3, 2, dtype=torch.float64)) for _ in range(2)]
    with SameNoise(4):
        found = [function(torch.zeros(3, 2)) for _ in range(2)]
    torch.testing.assert_close(found[1], exact[1].float())
    assert not torch.equal(found[0], found[1])
    with SameNoise(5):
        assert not torch.equal(function(torch.zeros(3, 2)), found[0])


def test_gamma_draws_keep_their_gradient():
    shape = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    with SameNoise(4):
        draw = torch._standard_gamma(shape)
    (gradient,) = torch.autograd.grad(draw.sum(), shape)
    torch.testing.assert_close(gradient, torch._standard_gamma_grad(shape, draw))
    with SameNoise(4):
        torch.testing.assert_close(torch._standard_gamma(shape.float()), draw.float())


def test_a_step_is_that_of_the_optimizer():
    network = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    expected = nn.Linear(3, 2)
    expected.load_state_dict(network.state_dict())
    step, why_not = steps.make_step(loss_of(network), steps.sgd(network), x, y)
    optimizer = steps.sgd(expected)
    assert (step.captured, why_not) == (False, "no CUDA")
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(expected)(x, y, torch.ones(()))
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(step(x, y), loss.detach())
    torch.testing.assert_close(network.weight, expected.weight)


def loss_of(network):
    return lambda x, y, weight: weight * nn.functional.cross_entropy(network(x), y)


@pytest.fixture
def recorded(monkeypatch):
    """In the place of CUDA: a graph that runs the loss again, as a replay would."""
    events = []

    class Graph:
        def replay(self):
            self.step.optimizer.zero_grad()
            self.step.value.copy_(self.step._run())

    @contextmanager
    def capture(graph):
        events.append("capture")
        yield

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            events.append("wait")

    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": events.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return events


def test_a_captured_step_takes_the_batch_it_is_given(recorded):
    network, expected = nn.Linear(3, 2), nn.Linear(3, 2)
    expected.load_state_dict(network.state_dict())
    batches = [(torch.randn(5, 3), torch.randint(2, (5,))) for _ in range(3)]
    step = steps.CapturedStep(loss_of(network), steps.sgd(network), *batches[0])
    step.graph.step = step
    # Warm-up and capture leave the weights alone; operations that wait are refused in the last two.
    torch.testing.assert_close(network.weight, expected.weight)
    assert recorded == ["wait", "error", 0, "error", 0, "wait", "capture"]
    step.kl_weight.fill_(0.5)
    eager = steps.EagerStep(loss_of(expected), steps.sgd(expected), torch.device("cpu"))
    eager.kl_weight.fill_(0.5)
    for x, y in batches:
        torch.testing.assert_close(step(x, y), eager(x, y))
    torch.testing.assert_close(network.weight, expected.weight)


def test_errors_are_relative_and_limits_hold():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert relative(b, a) == pytest.approx(0.1)
    assert worst([b, None], [a, None]) == pytest.approx(0.1)
    assert worst([b, None], [a, a]) == float("inf")
    assert worst([a, 1e-3 * b], [a, 0 * b], small=0.01) == pytest.approx(float(b.norm()) / 50)
    assert judged({"output": 1e-5, "loss": 1e-5})["right"]
    assert not judged({"output": 1e-5, "loss": 1e-3})["right"]
    assert not judged({"output": float("nan")})["right"]


def test_a_wrong_formula_is_found(monkeypatch):
    settings = correctness.Settings(torch.device("cpu"), tiny=True)
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    group = pn.normalizers.Group(4)
    assert correctness.network_errors(settings, small_network(), group, x, False)["right"]
    from pyronorm.latents import network

    plain = network.fold_all

    def wrong(latents, shift, scale):
        folded = plain(latents, shift, scale)
        if shift is None or shift.dtype == torch.float64:
            return folded
        return {layer: (weight, 1.01 * bias) for layer, (weight, bias) in folded.items()}

    monkeypatch.setattr(network, "fold_all", wrong)
    assert not correctness.network_errors(settings, small_network(), group, x, False)["right"]
