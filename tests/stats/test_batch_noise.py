"""Oracles: simulated batches, exhaustive enumeration of small populations, scipy.special.

Monte Carlo assertions allow five standard errors: false alarms at a rate of 6e-7 each.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from pyronorm.errors import OptionError
from pyronorm.stats import log_var_mean, log_var_variance, shift_variance
from pyronorm.stats.batch_noise import check_batch_size

SIZES = [8, 32, 128]
MU, SIGMA = -1.5, 2.5


def batch_statistics(n, draws=40_000):
    """Shift and log(S^2 / sigma^2) of simulated Gaussian batches."""
    x = MU + SIGMA * torch.randn(draws, n, dtype=torch.float64)
    var, mean = torch.var_mean(x, 1, correction=0)
    return (MU - mean) / SIGMA, torch.log(var / SIGMA**2)


def assert_mean(sample, expected):
    error = sample.std() / math.sqrt(sample.numel())
    assert abs(sample.mean() - expected) < 5 * error


@pytest.mark.parametrize("n", SIZES)
def test_laws_match_simulated_batches(n):
    shift, log_var = batch_statistics(n)
    assert_mean(shift.square(), shift_variance(float(n)))
    assert_mean(log_var, log_var_mean(float(n)))
    assert_mean((log_var - log_var_mean(float(n))).square(), log_var_variance(float(n)))


@pytest.mark.parametrize("n", SIZES)
def test_shift_variance_holds_for_skewed_values(n):
    mean = torch.empty(40_000, n, dtype=torch.float64).exponential_().mean(1)  # mu = sigma = 1
    assert_mean((1 - mean).square(), shift_variance(float(n)))


@pytest.mark.parametrize(("n", "published"), [(8, 0.330), (32, 0.0666), (128, 0.0159)])
def test_log_var_variance_published_values(n, published):
    assert log_var_variance(float(n)).item() == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize(
    ("n", "num_data"), [(2, 2), (2, 5), (3, 5), (4, 5), (2, 7), (3, 7), (4, 7), (6, 7), (7, 7)]
)
def test_finite_population_by_enumeration(n, num_data):
    values = np.array([1.0, -2.5, 0.3, 4.0, 4.0, -7.0, 11.0])[:num_data]
    means = [np.mean(batch) for batch in itertools.combinations(values, n)]
    expected = np.var(means) / np.var(values)
    assert shift_variance(float(n), num_data) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_finite_population_limits():
    assert shift_variance(5.0, 5) == 0.0
    assert shift_variance(5.0, 10**9) == pytest.approx(shift_variance(5.0), rel=1e-8)
    assert shift_variance(2.5) == 0.4


@pytest.mark.parametrize("n", [1.5, 2.0, 8.0, 33.3, 1e4])
def test_log_moments_match_scipy(n):
    half = (n - 1) / 2
    mean = scipy.special.digamma(half) + math.log(2 / n)
    np.testing.assert_allclose(log_var_mean(n), mean, rtol=1e-9)
    np.testing.assert_allclose(log_var_variance(n), scipy.special.polygamma(1, half), rtol=1e-9)


@pytest.mark.parametrize("n", [3.0, 20.0])
def test_log_moments_match_integration(n):
    law = scipy.stats.chi2(n - 1, scale=1 / n)  # of S^2 / sigma^2
    mean = law.expect(np.log)
    assert log_var_mean(n).item() == pytest.approx(mean, rel=1e-6)
    second = law.expect(lambda s: (np.log(s) - mean) ** 2)
    assert log_var_variance(n).item() == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("law", [log_var_mean, log_var_variance])
def test_tensors_keep_shape_and_dtype(law):
    n = torch.tensor([[3.0, 8.0, 20.5], [2.0, 5.0, 100.0]])
    assert law(n).dtype == torch.float32
    assert law(n.double()).dtype == law(4.0).dtype == torch.float64
    one_by_one = [[law(float(v)).item() for v in row] for row in n]
    torch.testing.assert_close(law(n.double()), torch.tensor(one_by_one, dtype=torch.float64))
    torch.testing.assert_close(law(n), law(n.double()).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("law", [log_var_mean, log_var_variance])
def test_gradcheck_in_batch_size(law):
    n = torch.tensor([2.5, 8.0, 40.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(law, (n,))


@pytest.mark.parametrize("size", [1.5, 2.0, 128.0, 1e9])
def test_check_batch_size_returns_the_size(size):
    assert check_batch_size(size, "here") == size


@pytest.mark.parametrize("size", [1.0, 0.0, -3.0, math.inf, -math.inf, math.nan])
def test_check_batch_size_refuses(size):
    with pytest.raises(OptionError, match=rf"^my guide: batch_size .* above 1 .*, got {size}\.$"):
        check_batch_size(size, "my guide")
    with pytest.raises(OptionError, match=r"^shift_variance: batch_size must be a finite number"):
        shift_variance(size)


def test_population_smaller_than_batch_is_refused():
    with pytest.raises(OptionError, match=r"num_data must be at least batch_size=8, got 7"):
        shift_variance(8.0, 7)


@pytest.mark.parametrize("function", [log_var_mean, log_var_variance])
def test_sizes_without_a_variance_are_refused_in_tensors_too(function):
    for bad in (1.0, 0.5, math.nan, math.inf):
        with pytest.raises(OptionError, match="finite and above 1 everywhere"):
            function(torch.tensor([8.0, bad]))
