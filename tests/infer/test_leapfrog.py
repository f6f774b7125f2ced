"""Oracle: Pyro's own potential, gradient and integrator, at points away from the start."""

from __future__ import annotations

import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad, velocity_verlet
from torch import nn

import pyronorm as pn
from pyronorm import likelihoods, normalizers, priors
from pyronorm.infer.leapfrog import Leapfrog, Point, fold_constants
from pyronorm.normalizers.watch import unchecked

N = 12

PRIORS = {
    "standard": priors.Standard(0.4, 0.3),
    "batch-noise": priors.BatchNoise(24),
    "hierarchical": priors.HierarchicalBatchNoise(24, 3.0, "layer"),
    "scale-invariant": priors.ScaleInvariant(),
}
LIKELIHOODS = {
    "categorical": (lambda: likelihoods.Categorical(), lambda: torch.randint(3, (N,)), 3),
    "missing": (
        lambda: likelihoods.Categorical(ignore_index=2),
        lambda: torch.randint(3, (N,)),
        3,
    ),
    "bernoulli": (
        lambda: likelihoods.Bernoulli(),
        lambda: torch.randint(2, (N, 3)).double(),
        3,
    ),
    "normal": (lambda: likelihoods.Normal(0.7), lambda: torch.randn(N, 2).double(), 2),
    "student": (lambda: likelihoods.StudentT(), lambda: torch.randn(N, 2).double(), 2),
    "poisson": (lambda: likelihoods.Poisson(), lambda: torch.poisson(torch.ones(N, 2)), 2),
    "negative-binomial": (
        lambda: likelihoods.NegativeBinomial(),
        lambda: torch.poisson(torch.ones(N, 2)),
        2,
    ),
    "heteroscedastic": (
        lambda: likelihoods.HeteroscedasticNormal(),
        lambda: torch.randn(N).double(),
        2,
    ),
    "tempered": (
        lambda: likelihoods.Categorical().tempered(1.5),
        lambda: torch.randint(3, (N,)),
        3,
    ),
    "ordinal": (lambda: likelihoods.Ordinal(3), lambda: torch.randint(3, (N, 1)), 1),
}
NORMALIZERS = {
    "batch": None,
    "population": normalizers.Population(),
    "group": normalizers.Group(2),
    "layer": normalizers.Layer(),
    "rms": normalizers.RMS(),
    "weight": normalizers.Weight(),
    "analytic": normalizers.Analytic(),
}


def network(outputs: int) -> nn.Module:
    found = nn.Sequential(
        nn.Linear(5, 4),
        nn.BatchNorm1d(4),
        nn.ReLU(inplace=True),
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Linear(6, outputs),
    )
    for norm in (found[1], found[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.num_batches_tracked.fill_(1)
    return found.double().eval()


def compared(prior, likelihood, target, outputs, normalizer):
    """The step of the graph and that of Pyro, for one model."""
    torch.manual_seed(3)
    x, y = torch.randn(N, 5).double(), target()
    converted = pn.convert(network(outputs), normalizer, example_input=x)
    model = pn.NormalizationModel(converted, likelihood, N, prior).double().eval()
    model.requires_grad_(False)
    with unchecked():
        start, potential, _, _ = initialize_model(
            model, (x, y), init_strategy=pn.init_to_neutral, max_plate_nesting=1
        )
        step = Leapfrog(potential, start, dense=False, compile=False)
        assert step.traced
        z = {name: value + 0.2 * torch.randn_like(value) for name, value in start.items()}
        r = {name: torch.randn_like(value) for name, value in start.items()}
        gradient, value = potential_grad(potential, z)
        mass = torch.rand(step.pack(z).shape).double() + 0.5
        scales = step.unpack(mass)
        expected = velocity_verlet(
            z, r, potential, lambda r: {k: scales[k] * v for k, v in r.items()}, 0.05
        )
        point = Point(step.pack(z), step.pack(r), step.pack(r), step.pack(gradient), value, value)
        size = torch.tensor(0.05, dtype=torch.float64)
        return step(point, size, mass, mass.sqrt()), expected, step, mass


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_potential_and_gradient_are_pyros(prior, name):
    likelihood, target, outputs = LIKELIHOODS[name]
    check(compared(PRIORS[prior], likelihood(), target, outputs, None))


@pytest.mark.parametrize("name", NORMALIZERS)
def test_with_every_normalizer(name):
    target = LIKELIHOODS["categorical"][1]
    likelihood = likelihoods.Categorical()
    check(compared(priors.BatchNoise(24), likelihood, target, 3, NORMALIZERS[name]))


def check(found):
    point, (z, r, gradient, potential), step, mass = found
    for mine, theirs in ((point.z, z), (point.r, r), (point.gradient, gradient)):
        torch.testing.assert_close(mine, step.pack(theirs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(point.potential, potential, rtol=1e-10, atol=1e-10)
    kinetic = (mass * step.pack(r).square()).sum() / 2
    torch.testing.assert_close(point.energy, potential + kinetic, rtol=1e-10, atol=1e-10)
    assert not torch.equal(point.gradient, torch.zeros_like(point.gradient))


def test_what_depends_on_values_is_evaluated_as_it_is():
    def potential(z):
        total = z["a"].square().sum()
        return total if bool(total > 1) else 3 * total

    like = {"a": torch.tensor([0.5, 0.5])}
    step = Leapfrog(potential, like, dense=False, compile=True)
    assert not step.traced
    assert not step.compiled
    ones = torch.ones(2)
    for z, factor in (([0.1, 0.2], 3), ([2.0, 1.0], 1)):
        point = Point(torch.tensor(z), 0 * ones, ones, ones, ones[0], ones[0])
        found = step(point, torch.tensor(0.0), ones, ones)
        torch.testing.assert_close(found.gradient, 2 * factor * torch.tensor(z))


def test_a_trace_that_computes_something_else_is_not_used():
    """Python sees another value at each call."""
    calls = []

    def potential(z):
        calls.append(1)
        return len(calls) * z["a"].square().sum()

    assert not Leapfrog(potential, {"a": torch.ones(2)}, dense=False, compile=False).traced


def test_without_a_compiler_a_warning_says_so(monkeypatch):
    def fails(step, dynamic):
        def call(*args):
            raise RuntimeError("Failed to find C++ compiler.\nMore of it.")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UserWarning, match=r"runs without it.* RuntimeError: Failed to find C\+\+"):
        step = Leapfrog(
            lambda z: z["a"].square().sum(), {"a": torch.ones(2)}, dense=True, compile=True
        )
    assert step.traced
    assert not step.compiled


def test_constants_are_computed_once_and_random_numbers_each_time():
    from torch.fx.experimental.proxy_tensor import make_fx

    weight = torch.randn(3, 3)

    def function(x):
        return x * (weight @ weight).exp().sum() + torch.rand_like(weight).sum() * 0

    graph = make_fx(function)(torch.ones(2))
    before = [str(node.target) for node in graph.graph.nodes]
    fold_constants(graph)
    after = [str(node.target) for node in graph.graph.nodes]
    assert "aten.mm.default" in before
    assert "aten.mm.default" not in after
    assert "aten.exp.default" not in after
    assert any("rand_like" in name for name in after)
    x = torch.randn(2)
    torch.testing.assert_close(graph(x), function(x))
