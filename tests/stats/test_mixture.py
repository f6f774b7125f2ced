"""Oracle: numerical integration of -q log q."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch

from pyronorm.stats import mixture
from pyronorm.stats.mixture import mixture_entropy

GAUSS = 0.5 * math.log(2 * math.pi * math.e)


def log_density(y, means, std):
    z = (np.atleast_1d(y)[:, None] - means) / std
    parts = -0.5 * z**2 - math.log(std) - 0.5 * math.log(2 * math.pi) - math.log(len(means))
    return np.logaddexp.reduce(parts, axis=1)


def integrated(means, std):
    """-∫ q log q by the trapezoidal rule (exponentially accurate for a smooth decaying integrand)."""
    means = np.asarray(means, dtype=float)
    low, high = means.min() - 12 * std, means.max() + 12 * std
    y = np.linspace(low, high, int((high - low) / std * 20))
    log_q = log_density(y, means, std)
    return -scipy.integrate.trapezoid(np.exp(log_q) * log_q, y)


def entropy(means, std, dtype=torch.float64):
    means = torch.as_tensor(np.asarray(means), dtype=dtype)[:, None]
    return mixture_entropy(means, torch.tensor([std], dtype=dtype)).item()


def test_oracle_matches_adaptive_quadrature():
    means, std = np.array([-1.0, 0.5, 3.0]), 0.7

    def integrand(y):
        log_q = log_density(y, means, std)[0]
        return -math.exp(log_q) * log_q

    expected = scipy.integrate.quad(integrand, -12, 14, limit=200, epsabs=1e-12)[0]
    assert integrated(means, std) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("std", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_identical_components_are_one_gaussian(samples, std):
    assert entropy([2.5] * samples, std) == pytest.approx(GAUSS + math.log(std), abs=1e-12)


@pytest.mark.parametrize("samples", [2, 5, 12])
def test_separated_components_add_log_of_their_number(samples):
    means = 40.0 * np.arange(samples)
    assert entropy(means, 0.8) == pytest.approx(
        GAUSS + math.log(0.8) + math.log(samples), abs=1e-12
    )


# Docstring: error below 1e-3 where the means lie within a few std. (It calls the error relative;
# the entropy of a density passes through zero, so the tests here take it as absolute, in nats.)
@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 2.0, 3.0, 4.25, 5.0, 6.0, 8.0, 15.0])
@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_two_components_at_every_distance(distance, std):
    means = np.array([0.0, distance]) * std - 1
    assert entropy(means, std) == pytest.approx(integrated(means, std), abs=1e-3)


@pytest.mark.parametrize("distance", [0.5, 1.0, 1.5])
def test_overlapping_components_are_accurate_to_1e_6(distance):
    means = [0.0, distance]
    assert entropy(means, 1.0) == pytest.approx(integrated(means, 1.0), abs=1e-6)


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0, 20.0])
@pytest.mark.parametrize("samples", [3, 10, 60])
def test_many_components(samples, spread):
    means = np.random.default_rng(samples).normal(size=samples) * spread
    assert entropy(means, 1.0) == pytest.approx(integrated(means, 1.0), abs=1e-3)


@pytest.mark.parametrize("distance", [3.5, 4.25, 5.5])
def test_lattice_is_the_worst_case(distance):
    means = distance * np.arange(30.0)
    assert entropy(means, 1.0) == pytest.approx(integrated(means, 1.0), abs=1e-3)


@pytest.mark.parametrize("outlier", [3.0, 6.0, 30.0])
def test_one_outlier_among_many(outlier):
    means = np.append(np.zeros(40), outlier)
    assert entropy(means, 1.0) == pytest.approx(integrated(means, 1.0), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
def test_each_element_has_its_own_means_and_width(shape, dtype):
    means = torch.randn(6, *shape, dtype=dtype) * 2
    std = torch.rand(shape, dtype=dtype) + 0.3
    result = mixture_entropy(means, std)
    assert result.dtype == dtype
    expected = [
        integrated(m.numpy(), float(s))
        for m, s in zip(means.double().flatten(1).T, std.flatten(), strict=True)
    ]
    expected = torch.tensor(expected, dtype=dtype).reshape(shape)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


def test_split_into_parts_changes_nothing(monkeypatch):
    means, std = torch.randn(5, 4, 3, dtype=torch.float64), torch.rand(4, 3).double() + 0.5
    whole = mixture_entropy(means, std)
    monkeypatch.setattr(mixture, "_ELEMENTS", 5 * 5 * 16 * 5)  # parts of 5, 5 and 2 elements
    torch.testing.assert_close(mixture_entropy(means, std), whole, rtol=0, atol=1e-14)
    monkeypatch.setattr(mixture, "_ELEMENTS", 1)  # never less than one element at a time
    torch.testing.assert_close(mixture_entropy(means, std), whole, rtol=0, atol=1e-14)


def test_scaling_the_unit_adds_its_logarithm():
    means, std = torch.randn(5, 3, dtype=torch.float64), torch.rand(3).double() + 0.5
    expected = mixture_entropy(means, std) + math.log(7.0)
    torch.testing.assert_close(mixture_entropy(7 * means - 2, 7 * std), expected)


def test_entropy_of_noise_bounds_it_from_below():
    means, std = torch.randn(8, 50, dtype=torch.float64) * 5, torch.ones(50).double()
    h = mixture_entropy(means, std)
    assert (h > GAUSS).all()
    assert (h < GAUSS + math.log(8) + 1e-3).all()


def test_gradcheck():
    means = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    std = torch.tensor([0.6, 1.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixture_entropy, (means, std))


def test_single_element_without_axes():
    means = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    result = mixture_entropy(means, torch.tensor(1.0, dtype=torch.float64))
    assert result.item() == pytest.approx(integrated(means.numpy(), 1.0), abs=1e-3)
