"""Ranked probability scores against integrals, double sums and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyronorm.stats.crps import crps_normal_mixture, crps_samples


def integrated(cdf, y: float) -> float:
    below = integrate.quad(lambda t: cdf(t) ** 2, -40, y, limit=200)[0]
    return below + integrate.quad(lambda t: (1 - cdf(t)) ** 2, y, 40, limit=200)[0]


def test_crps_of_one_draw_is_the_closed_form_of_a_normal_distribution():
    mean, std, y = torch.randn(6), torch.rand(6) + 0.2, torch.randn(6)
    z = ((y - mean) / std).double().numpy()
    expected = std.numpy() * (
        z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi)
    )
    found = crps_normal_mixture(mean[None], std[None], y)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_crps_of_a_mixture_is_the_integral_of_its_definition():
    mean = 2 * torch.randn(4, 2, 3, dtype=torch.double)
    std = torch.tensor([0.3, 1.0, 2.5], dtype=torch.double)
    y = torch.randn(2, 3, dtype=torch.double)
    found = crps_normal_mixture(mean, std, y)
    for i, k in itertools.product(range(2), range(3)):
        m, s = mean[:, i, k].numpy(), float(std[k])
        expected = integrated(
            lambda t, m=m, s=s: stats.norm.cdf((t - m) / s).mean(), float(y[i, k])
        )
        assert float(found[i, k]) == pytest.approx(expected, rel=1e-6)


def test_crps_of_samples_is_its_double_sum_and_tends_to_that_of_the_distribution():
    samples, y = torch.randn(7, 2, 3, dtype=torch.double), torch.randn(2, 3, dtype=torch.double)
    expected = (samples - y).abs().mean(0)
    for a, b in itertools.product(samples, samples):
        expected = expected - (a - b).abs() / (2 * 49)
    torch.testing.assert_close(crps_samples(samples, y), expected)
    many = 1 + 2 * torch.randn(100_000, dtype=torch.double)
    y = torch.tensor(0.3, dtype=torch.double)
    one = torch.ones(1, dtype=torch.double)
    exact = crps_normal_mixture(one, 2 * one, y)
    assert float(crps_samples(many, y)) == pytest.approx(float(exact), rel=0.02)
