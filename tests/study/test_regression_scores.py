"""Scores of regressions, against brute force and where 0 and 100 % are reached by construction."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyronorm.study.regression_scores import (
    fit_noise,
    optimal_crps,
    optimal_pll,
    regression_scores,
)


def gaussian_crps(error, std):
    z = error / std
    phi, cdf = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(z)
    return std * (z * (2 * cdf - 1) + 2 * phi - 1 / math.sqrt(math.pi))


def made(samples=7, held_out=40, examples=30):
    """Draws whose spread has something to do with the errors."""
    spread = [torch.rand(n, dtype=torch.float64) + 0.2 for n in (held_out, examples)]
    draws = [torch.randn(samples, len(s), dtype=torch.float64) * s for s in spread]
    y = [1.2 * s * torch.randn(len(s), dtype=torch.float64) for s in spread]
    return draws[0], y[0], draws[1], y[1]


def test_optima_are_those_of_a_fine_grid():
    error = torch.tensor([0.3, -2.0, 1e-3], dtype=torch.float64)
    std = torch.logspace(-4, 1, 200_001, dtype=torch.float64)[:, None]
    density = Normal(0.0, std).log_prob(error)
    assert torch.allclose(optimal_pll(error), density.max(0).values, atol=1e-8)
    assert torch.allclose(optimal_crps(error), gaussian_crps(error, std).min(0).values, rtol=1e-8)


def test_an_error_of_zero_has_a_finite_optimum():
    zero = torch.zeros(1, dtype=torch.float64)
    assert 20 < float(optimal_pll(zero)) < 30
    assert float(optimal_crps(zero)) == 0


@pytest.mark.parametrize(("best", "found"), [(0.7, 0.7), (0.01, 0.2), (50.0, 6.0)])
def test_noise_is_the_minimum_or_an_end(best, found):
    noise = fit_noise(lambda s: (math.log(s) - math.log(best)) ** 2, 2.0)
    assert noise == pytest.approx(found, rel=1e-3)


def test_equal_draws_are_the_constant_variance():
    validation, y_validation, test, y = made()
    scores = regression_scores(validation[:1].repeat(3, 1), y_validation, test[:1].repeat(3, 1), y)
    assert scores["pll_percent"] == pytest.approx(0, abs=1e-9)
    assert scores["pll_percent_likelihood"] == pytest.approx(0, abs=1e-9)
    assert scores["crps_percent"] == pytest.approx(0, abs=1e-9)


def test_best_variances_reach_a_hundred():
    # two draws at m ± d have mean m and variance d²
    error = torch.linspace(0.5, 2, 31, dtype=torch.float64)
    noise = 0.2 * float(error.square().mean().sqrt())
    d = (error.square() / math.log(2) - noise**2).sqrt()
    draws = torch.stack([-d, d])
    scores = regression_scores(draws, error, draws, error)
    assert scores["crps_percent"] == pytest.approx(100, abs=1e-3)
    # the least variance for a coverage of all
    assert scores["coverage"] == 1.0
    width = 2 * 1.6448536 * error.mean() / math.sqrt(math.log(2))
    assert scores["width"] == pytest.approx(float(width), rel=1e-3)


def test_scores_are_those_of_scipy_and_torch():
    validation, y_validation, test, y = made()

    def fitted(loss, scale):
        bounds = (math.log(0.1 * scale), math.log(3 * scale))
        found = minimize_scalar(lambda t: float(loss(math.exp(t))), bounds=bounds, method="bounded")
        return math.exp(found.x)

    def mixture(draws, noise):
        weights = Categorical(probs=torch.ones(draws.shape[::-1], dtype=torch.float64))
        return MixtureSameFamily(weights, Normal(draws.T, noise))

    error = y_validation - validation.mean(0)
    scale = float(error.square().mean().sqrt())
    v = validation.var(0, correction=0)
    noise = fitted(lambda s: gaussian_crps(error, (v + s * s).sqrt()).mean(), scale)
    constant = fitted(lambda s: gaussian_crps(error, torch.tensor(s)).mean(), scale)
    likely = fitted(lambda s: -mixture(validation, s).log_prob(y_validation).mean(), scale)

    scores = regression_scores(validation, y_validation, test, y)
    mean, error = test.mean(0), y - test.mean(0)
    std = (test.var(0, correction=0) + noise**2).sqrt()
    pll = mixture(test, noise).log_prob(y).mean()
    crps = gaussian_crps(error, std).mean()
    assert scores["pll"] == pytest.approx(float(pll), abs=1e-3)
    assert scores["crps"] == pytest.approx(float(crps), rel=1e-3)
    assert scores["rmse"] == pytest.approx(float(error.square().mean().sqrt()))
    zero = Normal(mean, constant).log_prob(y).mean()
    percent = 100 * (pll - zero) / (optimal_pll(error).mean() - zero)
    assert scores["pll_percent"] == pytest.approx(float(percent), abs=0.05)
    zero = gaussian_crps(error, torch.tensor(constant)).mean()
    percent = 100 * (crps - zero) / (optimal_crps(error).mean() - zero)
    assert scores["crps_percent"] == pytest.approx(float(percent), abs=0.05)
    # by likelihood the constant is the root mean squared error
    pll, zero = mixture(test, likely).log_prob(y).mean(), Normal(mean, scale).log_prob(y).mean()
    percent = 100 * (pll - zero) / (optimal_pll(error).mean() - zero)
    assert scores["pll_percent_likelihood"] == pytest.approx(float(percent), abs=0.05)


def test_units_change_nothing_but_units():
    validation, y_validation, test, y = made()
    scores = regression_scores(validation, y_validation, test, y, unit=4.0)
    there = regression_scores(4 * validation, 4 * y_validation, 4 * test, 4 * y)
    assert scores == pytest.approx(there)
