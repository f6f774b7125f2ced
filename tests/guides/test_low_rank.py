from __future__ import annotations

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyronorm.errors import OptionError
from pyronorm.guides import LowRank, MeanField
from tests.guides.cases import make_bank, make_model


def randomized(model=None, rank: int = 3) -> LowRank:
    guide = LowRank(make_model() if model is None else model, rank=rank)
    with torch.no_grad():
        guide.loc.normal_()
        guide.factor.normal_().mul_(0.3)
        guide.log_std.normal_().sub_(1)
    return guide


def test_density_is_that_of_the_gaussian_with_the_jacobian():
    guide = randomized()
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    shift, scale = trace.nodes["shift"]["value"], trace.nodes["scale"]["value"]
    gaussian = torch.distributions.MultivariateNormal(guide.loc, guide.covariance())
    expected = gaussian.log_prob(torch.cat([shift, scale.log()])) - scale.log().sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-4, atol=1e-3)


def test_draws_have_the_mean_and_covariance():
    model = make_model()
    guide = randomized(model)
    draws = guide.draw(model, 20_000)
    values = torch.cat([draws.shift, draws.scale.log()], -1)
    covariance = guide.covariance().detach()
    std = covariance.diagonal().sqrt()
    # 5 standard errors each, for 20 means and 210 covariances
    assert ((values.mean(0) - guide.loc).abs() < 5 * std / math.sqrt(20_000)).all()
    error = (values.T.cov() - covariance) / (std * std[:, None])
    assert error.abs().max() < 5 * math.sqrt(2 / 20_000)


def test_both_elbos_agree():
    model = make_model()
    guide = LowRank(model, rank=2)
    x, y = torch.randn(4, 5), torch.randint(3, (4,))
    losses = []
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(1)
        losses.append(elbo.loss(model, guide, x, y))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_initial_width():
    guide = LowRank(make_model(), rank=10, init_std=0.2)
    std = guide.covariance().diagonal().sqrt()
    assert std.mean().item() == pytest.approx(0.2, rel=0.1)
    assert torch.equal(guide.loc, torch.zeros(20))


@pytest.mark.parametrize("neutral", [False, True])
def test_from_batch_size_starts_at_the_moments_of_mean_field(neutral):
    model = make_model()
    guide = LowRank.from_batch_size(model, 9.0, rank=3, neutral=neutral)
    other = MeanField.from_batch_size(model, 9.0, neutral=neutral)
    covariance = guide.covariance()
    std = torch.cat([other.shift_log_std, other.log_scale_log_std]).exp()
    torch.testing.assert_close(covariance.diagonal(), std.square())
    torch.testing.assert_close((2 * guide.log_std).exp(), std.square() / 2)
    loc = torch.cat([other.shift_loc, other.log_scale_loc])
    torch.testing.assert_close(guide.loc, loc)
    with pytest.raises(OptionError, match="from_batch_size"):
        LowRank.from_batch_size(model, 1.0)


def test_from_bank_keeps_means_and_variances_exactly_and_leading_correlations():
    model = make_model()
    bank = make_bank(model, rows=60)
    rows = torch.cat([bank.shift, bank.scale.log()], -1)
    sample = rows.T.cov()
    for rank in (1, 5, 20):
        guide = LowRank.from_bank(model, bank, rank=rank)
        torch.testing.assert_close(guide.loc.detach(), rows.mean(0), rtol=1e-4, atol=1e-6)
        covariance = guide.covariance().detach()
        torch.testing.assert_close(covariance.diagonal(), sample.diagonal(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(covariance, sample, rtol=1e-3, atol=1e-5)  # full rank: all of it
    leading = torch.linalg.eigh(sample).eigenvectors[:, -1]
    one = LowRank.from_bank(model, bank, rank=1).factor.detach()[:, 0]
    assert abs(torch.dot(one / one.norm(), leading)) == pytest.approx(1, abs=1e-4)


def test_neutral_keeps_the_covariance_and_drops_the_means():
    model = make_model()
    bank = make_bank(model, rows=60)
    guide = LowRank.from_bank(model, bank, rank=5, neutral=True)
    assert {n for n, _ in guide.named_parameters()} == {"factor", "log_std"}
    assert torch.equal(guide.loc, torch.zeros(20))
    free = LowRank.from_bank(model, bank, rank=5)
    torch.testing.assert_close(guide.covariance(), free.covariance())
    with pytest.raises(RuntimeError, match='Unexpected key.*"loc"'):
        guide.load_state_dict(free.state_dict())


def test_errors():
    model = make_model()
    for rank in (0, 21):
        with pytest.raises(OptionError, match=f"rank must be .*, got {rank}"):
            LowRank(model, rank=rank)
    with pytest.raises(OptionError, match="init_std must be positive"):
        LowRank(model, init_std=0.0)
    with pytest.raises(OptionError, match="at least 11 rows, got 5"):
        LowRank.from_bank(model, make_bank(model, rows=5), rank=10)
