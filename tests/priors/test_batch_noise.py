"""Oracles: statistics of simulated Gaussian batches, scipy. Goodness of fit alarms at p = 1e-4."""

import dataclasses
import math

import pytest
import scipy.stats
import torch
from torch.distributions import kl_divergence

from pyronorm.errors import OptionError
from pyronorm.normalizers import Batch, Exclusive, LatentNorm
from pyronorm.priors import BatchNoise, Standard
from tests.priors.laws import pair

MU, SIGMA = 3.0, 0.7


@pytest.mark.parametrize("n", [2, 8, 33])
def test_is_the_law_of_simulated_batches(n):
    x = MU + SIGMA * torch.randn(8000, n, dtype=torch.float64)
    var, mean = torch.var_mean(x, 1, correction=0)
    shift, scale = pair(BatchNoise(float(n)), 1, x)
    simulated = (MU - mean) / SIGMA, SIGMA / var.sqrt()
    for sample, d in zip(simulated, (shift, scale), strict=True):
        draws = d.sample((8000,))[:, 0]
        assert scipy.stats.ks_2samp(sample.numpy(), draws.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1.5, 8.0, 33.3])
def test_densities_match_scipy(n, dtype):
    shift, scale = pair(BatchNoise(n), 3, torch.zeros(1, dtype=dtype))
    x = torch.tensor([0.7, 1.1, 1.9], dtype=dtype)
    square = scipy.stats.invgamma((n - 1) / 2, scale=n / 2)  # of scale^2
    expected = (square.logpdf(x.double() ** 2) + (2 * x.double()).log().numpy()).sum()
    assert scale.log_prob(x).item() == pytest.approx(expected, rel=1e-5)
    expected = scipy.stats.norm(0, 1 / math.sqrt(n)).logpdf(x.double().numpy()).sum()
    assert shift.log_prob(x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [5.0, 40.0])
def test_mean_of_inverse_square_scale(n):
    """E[1/scale^2] = (n - 1)/n, within five standard errors."""
    _, scale = pair(BatchNoise(n), 4, torch.zeros(1, dtype=torch.float64))
    x = scale.sample((20_000,)).flatten() ** -2
    assert abs(x.mean() - (n - 1) / n) < 5 * x.std() / math.sqrt(x.numel())


@pytest.mark.parametrize("n", [4.0, 50.0])
def test_kl_from_another_batch_size_and_from_log_normal(n):
    """Monte Carlo of E_q log q/p, within five standard errors."""
    like = torch.zeros(1, dtype=torch.float64)
    p = pair(BatchNoise(n), 3, like)
    for guide in (BatchNoise(12.0), Standard(0.3, 0.25)):
        for a, b in zip(pair(guide, 3, like), p, strict=True):
            x = a.sample((50_000,))
            ratio = a.log_prob(x) - b.log_prob(x)
            assert abs(ratio.mean() - kl_divergence(a, b)) < 5 * ratio.std() / math.sqrt(len(x))


def test_large_batches_concentrate_at_the_neutral_values():
    shift, scale = pair(BatchNoise(1e8), 3, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(shift.sample(), torch.zeros(3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(scale.sample(), torch.ones(3).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", [1.0, 0.0, -8.0, math.inf, math.nan])
def test_refuses_batches_without_variance(n):
    with pytest.raises(OptionError, match=rf"^priors\.BatchNoise: batch_size .* got {n}\.$"):
        BatchNoise(n)


def test_is_an_immutable_value():
    assert BatchNoise(8.0) == BatchNoise(8.0) != BatchNoise(9.0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="batch_size"):
        BatchNoise(8.0).batch_size = 9.0


# Batch normalization against the law, in one channel: x ~ N(0, 1), y = x, prediction w * normalized(x),
# squared error. With S the biased deviation of n values, batch normalization's loss is
# 1 - 2 w E[S] + w^2 and the law's 1 - 2 w E[1/S] + w^2 n/(n-3) (1 + 1/n).


def mean_deviation(n, power):
    """E[S] for power 1, E[1/S] for power -1: S sqrt(n) is chi with n - 1 degrees of freedom."""
    ratio = math.lgamma((n - 1 + power) / 2) - math.lgamma((n - 1) / 2)
    return (2 / n) ** (power / 2) * math.exp(ratio)


def closed_forms(n):
    """Loss at w = 1, slope there and best w: of batch normalization, then of the law."""
    batch, law = mean_deviation(n, 1), mean_deviation(n, -1)
    square = n / (n - 3) * (1 + 1 / n)
    return (
        (2 - 2 * batch, 2 - 2 * batch, batch),
        (1 - 2 * law + square, 2 * square - 2 * law, law / square),
    )


def test_closed_forms_of_the_gap():
    batch, law = closed_forms(8)
    assert batch == pytest.approx((0.195, 0.195, 0.903), abs=5e-4)
    assert law == pytest.approx((0.393, 1.193, 0.669), abs=5e-4)
    for n in (256, 512):  # the gap of the slopes is of the order of the slopes themselves, 1/n
        batch, law = closed_forms(n)
        assert 2 < (law[1] - batch[1]) / batch[1] < 4


def simulated(values, x):
    """Loss at w = 1 and slope there over channels, with standard errors."""
    losses, slopes = (values - x).square().mean(0), (2 * values * (values - x)).mean(0)
    both = torch.stack([losses, slopes])
    return both.mean(1), both.std(1) / math.sqrt(x.shape[1])


@pytest.mark.parametrize("n", [8, 32])
def test_layers_have_the_gap(n):
    # Every channel is a trial. Alarms falsely beyond 5 standard errors, 6e-7 each.
    trials = 60_000
    torch.manual_seed(n)
    x = torch.randn(n, trials, dtype=torch.float64)
    batch, law = (torch.tensor(form[:2], dtype=torch.float64) for form in closed_forms(n))
    layer = LatentNorm(Batch(eps=1e-12), trials, affine=False).double()
    estimate, error = simulated(layer(x), x)
    assert ((estimate - batch).abs() < 5 * error).all()
    # the law, independent of the example
    shift, scale = (d.sample() for d in pair(BatchNoise(float(n)), trials, x))
    estimate, error = simulated(scale * (x[:1] + shift), x[:1])
    assert ((estimate - law).abs() < 5 * error).all()
    # statistics of the n other examples are the law
    more = torch.cat([x, torch.randn_like(x[:1])])
    layer = LatentNorm(Exclusive(eps=0.0), trials, affine=False).double()
    estimate, error = simulated(layer(more), more)
    assert ((estimate - law).abs() < 5 * error).all()
