from __future__ import annotations

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyronorm.errors import OptionError
from pyronorm.guides import MeanField, Paired
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.guides.cases import make_bank, make_model
from tests.guides.conjugate import Conjugate


def randomized(model=None, **options) -> Paired:
    guide = Paired(make_model() if model is None else model, **options)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_().mul_(0.3)
        guide.shift_log_std.sub_(1)
    return guide


def location(guide):
    return torch.stack([guide.shift_loc, guide.log_scale_loc], -1)


def test_density_is_that_of_the_gaussian_with_the_jacobian():
    guide = randomized()
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    shift, scale = trace.nodes["shift"]["value"], trace.nodes["scale"]["value"]
    gaussian = torch.distributions.MultivariateNormal(location(guide), guide.covariance())
    pairs = torch.stack([shift, scale.log()], -1)
    expected = gaussian.log_prob(pairs).sum() - scale.log().sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-4, atol=1e-3)


def test_draws_have_the_mean_and_covariance():
    model = make_model()
    guide = randomized(model)
    draws = guide.draw(model, 20_000)
    values = torch.stack([draws.shift, draws.scale.log()], -1)
    covariance = guide.covariance().detach()
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # 5 standard errors each, for 20 means and 30 covariances
    assert ((values.mean(0) - location(guide)).abs() < 5 * std / math.sqrt(20_000)).all()
    centred = (values - values.mean(0)) / std
    sample = torch.einsum("sca,scb->cab", centred, centred) / 20_000
    error = sample - covariance / (std[..., :, None] * std[..., None, :])
    assert error.abs().max() < 5 * math.sqrt(2 / 20_000)


def test_without_coupling_it_is_the_mean_field():
    model = make_model()
    paired, mean_field = Paired(model, 0.3), MeanField(model, 0.3)
    values = {"shift": torch.randn(10), "scale": torch.rand(10) + 0.5}
    traces = [poutine.trace(poutine.condition(g, values)).get_trace() for g in (paired, mean_field)]
    torch.testing.assert_close(*(trace.log_prob_sum() for trace in traces))


@pytest.mark.slow
@pytest.mark.parametrize("prior", [Standard(0.5, 0.7), BatchNoise(16.0), ScaleInvariant()])
def test_kl_by_the_chain_rule_agrees_with_the_closed_form(prior):
    """KL = KL of the two marginals + their mutual information, -log(1 - rho^2) / 2."""
    model = make_model(prior=prior)
    guide = randomized(model)
    covariance = guide.covariance().detach()
    marginals = MeanField(model)
    with torch.no_grad():
        marginals.shift_loc.copy_(guide.shift_loc)
        marginals.log_scale_loc.copy_(guide.log_scale_loc)
        marginals.shift_log_std.copy_(covariance[:, 0, 0].log() / 2)
        marginals.log_scale_log_std.copy_(covariance[:, 1, 1].log() / 2)
    information = 0.5 * (covariance[:, 0, 0] * covariance[:, 1, 1] / covariance.det()).log().sum()
    x, y = torch.randn(4, 5), torch.randint(3, (4,))

    def kl(elbo, guide):
        with torch.no_grad():
            loss = elbo.differentiable_loss(model, guide, x, y)
            torch.manual_seed(seed)
            trace = poutine.trace(guide).get_trace(x, y)
            replayed = poutine.trace(poutine.replay(model, trace)).get_trace(x, y)
            replayed.compute_log_prob()
            return loss + replayed.nodes["y"]["log_prob_sum"]

    sampled, ours = [], []
    for seed in range(200):
        for values, elbo in ((ours, TraceMeanField_ELBO()), (sampled, Trace_ELBO())):
            torch.manual_seed(seed)
            values.append(kl(elbo, guide))
    torch.manual_seed(seed)
    expected = kl(TraceMeanField_ELBO(), marginals) + information
    ours, sampled = torch.stack(ours), torch.stack(sampled)
    # 4 standard errors
    for values in (ours, sampled):
        assert abs(values.mean() - expected) < 4 * values.std() / 200**0.5 + 1e-4 * abs(expected)
    assert ours.std() < sampled.std()


def test_from_bank_has_the_covariance_of_each_channel():
    model = make_model()
    bank = make_bank(model, rows=60)
    # correlate them, as skewed activations do
    bank.var.mul_(torch.exp(-0.3 * bank.shift / bank.shift.std(0)))
    guide = Paired.from_bank(model, bank)
    for c in range(10):
        rows = torch.stack([bank.shift[:, c], bank.scale[:, c].log()])
        torch.testing.assert_close(guide.covariance()[c].detach(), rows.cov(), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(location(guide)[c].detach(), rows.mean(1), rtol=1e-3, atol=1e-6)
    neutral = Paired.from_bank(model, bank, neutral=True)
    torch.testing.assert_close(neutral.covariance(), guide.covariance())
    assert not location(neutral).any()
    assert {n for n, _ in neutral.named_parameters()} == {
        "coupling",
        "shift_log_std",
        "log_scale_log_std",
    }


@pytest.mark.slow
def test_it_comes_closer_to_a_correlated_posterior_than_the_mean_field():
    """Against the exact posterior on a grid: correlation found, and a higher ELBO."""
    problem = Conjugate(Standard(), num_data=60, offset=1.0)
    weight = problem.posterior()
    mean = [(weight * v).sum() for v in (problem.shift, problem.log_scale)]
    centred = problem.shift - mean[0], problem.log_scale - mean[1]
    exact = torch.stack([torch.stack([(weight * a * b).sum() for b in centred]) for a in centred])
    correlation = exact[0, 1] / (exact[0, 0] * exact[1, 1]).sqrt()
    assert abs(correlation) > 0.4  # there is something to find
    elbo = TraceMeanField_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=2)
    guides = Paired(problem.model).double(), MeanField(problem.model).double()
    for guide in guides:
        problem.train(guide, elbo)
    torch.testing.assert_close(guides[0].covariance()[0].detach(), exact, rtol=0.15, atol=2e-3)
    evidence = problem.log_joint.logsumexp((0, 1)).item() + math.log(problem.area)
    gaps = [evidence - problem.elbo(guide) for guide in guides]
    assert 0 < gaps[0] < gaps[1]


@pytest.mark.parametrize("init_std", [0.0, -1.0, math.inf])
def test_a_width_must_be_positive(init_std):
    with pytest.raises(OptionError, match="init_std must be positive"):
        Paired(make_model(), init_std=init_std)


def test_two_rows_are_not_enough():
    model = make_model()
    with pytest.raises(OptionError, match="at least 3 rows, got 2"):
        Paired.from_bank(model, make_bank(model, rows=2))
