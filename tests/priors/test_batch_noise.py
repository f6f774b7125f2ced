"""Oracles: statistics of simulated Gaussian batches, scipy. Goodness of fit alarms at p = 1e-4."""

import dataclasses
import math

import pytest
import scipy.stats
import torch
from torch.distributions import kl_divergence

from pyronorm.errors import OptionError
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
