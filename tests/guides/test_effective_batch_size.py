from __future__ import annotations

import dataclasses
import math

import pytest
import scipy.optimize
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyronorm import fit
from pyronorm.errors import OptionError
from pyronorm.guides import BatchNoise as Law
from pyronorm.guides import EffectiveBatchSize
from pyronorm.latents import Per
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.guides.cases import make_bank, make_model
from tests.guides.conjugate import Conjugate
from tests.priors.laws import pair

PRIORS = [Standard(0.5, 0.7), BatchNoise(16.0), ScaleInvariant()]
priors = pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)


def gaussian_bank(model, sizes, rows=200):
    """Statistics of Gaussian batches with another batch size in each channel."""
    bank = make_bank(model, rows)
    mean, var = [], []
    for n in sizes:
        x = torch.randn(rows, n, dtype=torch.float64)
        mean.append(x.mean(1))
        var.append(x.var(1, correction=0))
    std = (bank.reference_var + bank.eps).sqrt()
    return dataclasses.replace(
        bank,
        mean=bank.reference_mean + std * torch.stack(mean, 1).float(),
        var=std.square() * torch.stack(var, 1).float() - bank.eps,
    )


def kl(guide, prior):
    nodes = poutine.trace(guide).get_trace().nodes
    pairs = zip(("shift", "scale"), pair(prior, 10, torch.empty(0)), strict=True)
    return sum(torch.distributions.kl_divergence(nodes[site]["fn"], p) for site, p in pairs)


@pytest.mark.parametrize("per", list(Per))
def test_starts_as_fixed_noise_with_one_parameter_for_each_group(per):
    model = make_model()
    guide = EffectiveBatchSize(model, 12.5, per)
    fixed = poutine.trace(Law(model, 12.5)).get_trace().nodes
    nodes = poutine.trace(guide).get_trace().nodes
    for site in ("shift", "scale"):
        value = nodes[site]["value"].detach()
        ours, theirs = (n[site]["fn"].log_prob(value) for n in (nodes, fixed))
        torch.testing.assert_close(ours, theirs)
    assert [p.shape for p in guide.parameters()] == [
        ({Per.NETWORK: 1, Per.LAYER: 2, Per.CHANNEL: 10}[per],)
    ]


def test_a_group_has_the_noise_of_its_size():
    guide = EffectiveBatchSize(make_model())
    guide.load_state_dict(guide.state_dict() | {"log_df": torch.tensor([4.0, 30.0]).log()})
    torch.testing.assert_close(guide.batch_size, torch.tensor([5.0, 31.0]))
    nodes = poutine.trace(guide).get_trace().nodes
    expected = torch.tensor([5.0] * 6 + [31.0] * 4)
    torch.testing.assert_close(nodes["shift"]["fn"].base_dist.scale, expected.rsqrt())
    torch.testing.assert_close(nodes["scale"]["fn"].base_dist.df, expected - 1)
    torch.testing.assert_close(nodes["scale"]["fn"].base_dist.scale, expected.sqrt())


@priors
def test_analytic_kl_agrees_with_sampling(prior):
    guide = EffectiveBatchSize(make_model(), 9.0)
    with torch.no_grad():
        guide.log_df.add_(torch.tensor([-0.5, 0.7]))
        analytic = kl(guide, prior)
        sampled = []
        for _ in range(600):
            nodes = poutine.trace(guide).get_trace().nodes
            ratio = torch.zeros(())
            for site, p in zip(("shift", "scale"), pair(prior, 10, torch.empty(0)), strict=True):
                value = nodes[site]["value"]
                ratio = ratio + nodes[site]["fn"].log_prob(value) - p.log_prob(value)
            sampled.append(ratio)
    sampled = torch.stack(sampled)
    # 4 standard errors
    assert abs(analytic - sampled.mean()) < 4 * sampled.std() / math.sqrt(len(sampled))


@priors
def test_gradient_of_the_kl_divergence_is_its_finite_difference(prior):
    guide = EffectiveBatchSize(make_model(), 9.0).double()
    kl(guide, prior).backward()
    expected, step = [], 1e-5
    for g in range(2):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                guide.log_df[g] += sign * step
                ends.append(kl(guide, prior))
                guide.log_df[g] -= sign * step
        expected.append((ends[0] - ends[1]) / (2 * step))
    torch.testing.assert_close(guide.log_df.grad, torch.stack(expected), rtol=1e-5, atol=1e-7)


def test_pathwise_gradients_average_to_the_finite_difference_of_the_expectation():
    """E f(shift, scale) on a grid, f not a polynomial and not a product."""
    problem = Conjugate(Standard())
    guide = EffectiveBatchSize(problem.model, 6.0).double()

    def f(shift, scale):
        return torch.tanh(shift * scale + 0.5) * scale.sqrt()

    def expectation(log_df):
        guide.log_df.data.fill_(log_df)
        q = problem.log_density(guide).exp() * problem.area
        return float((q * f(problem.shift, problem.log_scale.exp())).sum())

    at, step = math.log(5.0), 1e-3
    expected = (expectation(at + step) - expectation(at - step)) / (2 * step)
    guide.log_df.data.fill_(at)
    leaf = torch.full((40_000,), at, dtype=torch.float64, requires_grad=True)
    guide.groups, guide.log_df = torch.arange(40_000), torch.nn.Parameter(leaf)
    values = guide()
    f(values["shift"], values["scale"]).sum().backward()
    gradients = guide.log_df.grad
    error = gradients.std() / math.sqrt(len(gradients))
    assert abs(gradients.mean() - expected) < 4 * error
    assert error < 0.1 * abs(expected)  # or the test could not fail


def test_from_bank_recovers_the_size_of_gaussian_batches_within_its_interval():
    model = make_model()
    sizes = [8] * 6 + [40] * 4
    bank = gaussian_bank(model, sizes)
    for per, expected in ((Per.LAYER, [8, 40]), (Per.CHANNEL, sizes)):
        expected = torch.tensor(expected)
        found = bank.effective_batch_size(per, confidence=0.9999)
        assert (found.lower < expected).all()
        assert (found.upper > expected).all()
        # 200 rows of 4 channels and more: known to a tenth or two
        ratio = found.upper / found.lower
        assert (ratio < (1.6 if per is Per.LAYER else 2.2)).all()
        guide = EffectiveBatchSize.from_bank(model, bank, per)
        size = guide.batch_size.detach().double()
        torch.testing.assert_close(size, found.estimate, rtol=1e-5, atol=0)
    one = bank.effective_batch_size(Per.NETWORK).estimate
    assert 8 < one.item() < 40


def test_layers_without_batch_statistics_have_no_noise_and_do_not_count():
    model = make_model()
    bank = gaussian_bank(model, [8] * 10)
    mean, var = bank.mean.clone(), bank.var.clone()
    mean[:, 6:], var[:, 6:] = torch.nan, torch.nan
    partly = dataclasses.replace(bank, mean=mean, var=var)
    assert partly.effective_batch_size().estimate[1].isinf()
    assert partly.effective_batch_size(Per.NETWORK).estimate == pytest.approx(
        bank.effective_batch_size(Per.LAYER).estimate[0].item()
    )
    guide = EffectiveBatchSize.from_bank(model, partly)
    assert guide.batch_size[1].item() == pytest.approx(1e6, rel=1e-4)
    assert poutine.trace(guide).get_trace().log_prob_sum().isfinite()


@pytest.mark.slow
@pytest.mark.parametrize(
    "prior", [Standard(0.4, 0.4), BatchNoise(3.0)], ids=["Standard", "BatchNoise"]
)
@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
def test_svi_reaches_the_size_closest_to_the_exact_posterior(prior, elbo):
    problem = Conjugate(prior, num_data=60)
    guide = EffectiveBatchSize(problem.model).double()

    def loss(log_df):
        guide.log_df.data.fill_(log_df)
        return -problem.elbo(guide)

    best = scipy.optimize.minimize_scalar(loss, bounds=(0, 6), options={"xatol": 1e-4})
    assert 1 < best.x < 5  # the optimum is inside
    guide.log_df.data.fill_(math.log(60.0))
    problem.train(guide, elbo(num_particles=20, vectorize_particles=True, max_plate_nesting=2))
    # the noise of the gradients moves log n by less than a tenth
    assert guide.log_df.item() == pytest.approx(best.x, abs=0.1)


def test_fit_trains_it():
    model = make_model(prior=BatchNoise(16.0))
    guide = EffectiveBatchSize(model, 4.0, Per.CHANNEL)
    before = guide.batch_size.detach().clone()
    x = torch.randn(50, 5)
    fit(model, guide, (x, (x[:, 0] > 0).long()), epochs=3)
    assert (guide.batch_size != before).all()


def test_a_batch_size_without_a_variance_is_refused():
    with pytest.raises(OptionError, match=r"EffectiveBatchSize: batch_size must be a finite"):
        EffectiveBatchSize(make_model(), 1.0)
    model = make_model()
    with pytest.raises(OptionError, match="at least 2 rows, got 1"):
        EffectiveBatchSize.from_bank(model, make_bank(model, rows=1))
