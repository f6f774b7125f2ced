from __future__ import annotations

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyronorm import priors
from pyronorm.errors import OptionError
from pyronorm.guides import BatchNoise
from pyronorm.infer import run_nuts
from tests.guides.cases import make_model


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("draws", [1, 4])
def test_against_its_own_law_the_elbo_is_the_expected_log_likelihood(elbo, draws):
    model = make_model(prior=priors.BatchNoise(12.5), draws=draws)
    guide = BatchNoise(model, 12.5)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    torch.manual_seed(3)
    loss = elbo().differentiable_loss(model, guide, x, y)
    torch.manual_seed(3)
    guide_trace = poutine.trace(guide).get_trace(x, y)
    trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(x, y)
    trace.compute_log_prob()
    # to the last bit where KL is analytic, and draw by draw where it is sampled
    assert torch.equal(loss, -trace.nodes["y"]["log_prob_sum"]) or elbo is Trace_ELBO
    torch.testing.assert_close(loss, -trace.nodes["y"]["log_prob_sum"], rtol=1e-6, atol=0)
    assert not list(guide.parameters())


def test_kl_divergence_is_exactly_zero():
    model = make_model(prior=priors.BatchNoise(12.5))
    prior = model.prior.law(model.space, torch.empty(0))
    nodes = poutine.trace(BatchNoise(model, 12.5)).get_trace().nodes
    for p, site in zip((prior.shift, prior.scale), ("shift", "scale"), strict=True):
        assert torch.distributions.kl_divergence(nodes[site]["fn"], p).item() == 0.0
        value = nodes[site]["value"]
        assert torch.equal(nodes[site]["fn"].log_prob(value), p.log_prob(value))


def test_draws_have_the_variance_of_batch_noise():
    guide = BatchNoise(make_model(), 32)
    shift = torch.stack([guide()["shift"] for _ in range(400)])
    # 4,000 draws: the sample variance is within 4 standard errors (false alarm 6e-5)
    assert abs(shift.var().item() * 32 - 1) < 4 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("batch_size", [1, 0.5, float("inf"), float("nan")])
def test_a_batch_size_without_a_variance_is_refused(batch_size):
    with pytest.raises(
        OptionError, match=r"guides\.BatchNoise: batch_size must be a finite number"
    ):
        BatchNoise(make_model(), batch_size)


@pytest.mark.parametrize("random", ["shift", "scale"])
def test_noise_of_the_shift_or_of_the_scale_alone(random):
    which = {"shift": random == "shift", "scale": random == "scale"}
    prior = priors.BatchNoise(12.5, **which)
    model = make_model(prior=prior)
    guide = BatchNoise(model, 12.5, **which)
    draws, both = (g.draw(model, 500, seed=0) for g in (guide, BatchNoise(model, 12.5)))
    held, expected = {"shift": (draws.scale, 1.0), "scale": (draws.shift, 0.0)}[random]
    assert bool((held == expected).all())
    assert draws.log_density is None
    a, b = getattr(draws, random), getattr(both, random)
    torch.testing.assert_close(a.var(), b.var(), rtol=0.1, atol=0)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):  # the KL divergence to the same prior is 0
        torch.manual_seed(3)
        loss = elbo.differentiable_loss(model, guide, x, y)
        torch.manual_seed(3)
        guide_trace = poutine.trace(guide).get_trace(x, y)
        trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(x, y)
        trace.compute_log_prob()
        torch.testing.assert_close(loss, -trace.nodes["y"]["log_prob_sum"], rtol=1e-6, atol=0)
    other = BatchNoise.from_settings(model, guide.settings())
    assert torch.equal(other.draw(model, 3, seed=1).shift, guide.draw(model, 3, seed=1).shift)
    with pytest.raises(OptionError, match="run_nuts: .*has no density"):
        run_nuts(model, (torch.randn(50, 5), torch.randint(3, (50,))), num_samples=4)


def test_no_noise_at_all_is_a_point():
    with pytest.raises(OptionError, match="leave no noise. That is the guide Point"):
        BatchNoise(make_model(), 8, shift=False, scale=False)


def test_a_state_is_the_whole_law():
    model = make_model()
    first, second = BatchNoise(model, 5), BatchNoise(model, 100)
    first.load_state_dict(second.state_dict())
    assert first.batch_size == 100
    expected = second.draw(model, 7, seed=0).shift
    assert torch.equal(first.draw(model, 7, seed=0).shift, expected)
    with pytest.raises(OptionError, match="the state is that of shift=True, scale=False"):
        first.load_state_dict(BatchNoise(model, 100, scale=False).state_dict())
    with pytest.raises(OptionError, match="numbers n, shift and scale, got tensor"):
        first.set_extra_state(torch.tensor(9.0))
