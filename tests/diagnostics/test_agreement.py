"""Measures of agreement against closed forms between Gaussians, and SciPy's Wasserstein distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, wasserstein_distance

from pyronorm.diagnostics import (
    compare_draws,
    correlation,
    factorized_spread,
    latent_vectors,
    low_rank_spread,
    sliced_wasserstein,
)
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.latents import Draws


def draws(number: int, mean: list[float], covariance: list[list[float]]) -> torch.Tensor:
    factor = torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64))
    noise = torch.randn(number, len(mean), dtype=torch.float64)
    return torch.tensor(mean, dtype=torch.float64) + noise @ factor.T


def folded_normal_mean(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """E|mean + sd * Z|: the Wasserstein distance of two normals that far apart."""
    density = sd * math.sqrt(2 / math.pi) * np.exp(-0.5 * (mean / sd) ** 2)
    return density + mean * (1 - 2 * norm.cdf(-mean / sd))


def test_one_dimension_is_scipys_distance():
    for sizes in ((7, 7), (5, 11), (300, 40)):
        a, b = torch.randn(sizes[0], 1).double(), 2 * torch.rand(sizes[1], 1).double() + 0.3
        expected = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
        assert sliced_wasserstein(a, b, num_directions=3) == pytest.approx(expected, rel=1e-6)


def test_ties_count():
    a = torch.tensor([[0.0], [0.0], [1.0], [2.0]])
    b = torch.tensor([[0.0], [1.0], [1.0]])
    expected = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert sliced_wasserstein(a, b, 1) == pytest.approx(expected)


def test_gaussians_in_three_dimensions():
    """Per direction a folded normal; 4 standard errors of 2,000 draws and 400 directions."""
    number = 2000
    mean, covariance = [0.5, -0.3, 0.8], [[1.0, 0.3, 0.0], [0.3, 2.0, -0.4], [0.0, -0.4, 0.5]]
    a = draws(number, mean, covariance)
    b = draws(number, [0.0, 0.0, 0.0], np.eye(3).tolist())
    theta = np.random.default_rng(0).normal(size=(20_000, 3))
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    sd = np.sqrt(np.einsum("ki,ij,kj->k", theta, covariance, theta))
    each = folded_normal_mean(theta @ mean, np.abs(sd - 1))
    tolerance = 4 * (each.std() / math.sqrt(400) + math.sqrt(2 / number))
    assert sliced_wasserstein(a, b, 400, seed=3) == pytest.approx(each.mean(), abs=tolerance)


def test_a_translation_moves_each_direction_by_its_share():
    """W1 of a translated sample is exactly |theta^T d|; in the plane its mean is 2/pi |d|."""
    a = torch.randn(5, 2, dtype=torch.float64)
    d = torch.tensor([0.6, -0.8], dtype=torch.float64)
    found = sliced_wasserstein(a, a + d, 10_000)
    assert found == pytest.approx(2 / math.pi, abs=4 * 0.31 / math.sqrt(10_000))
    assert sliced_wasserstein(a, a, 10) == 0


def test_directions_are_seeded_and_leave_torch_alone():
    a, b = torch.randn(20, 4), torch.randn(30, 4)
    state = torch.get_rng_state()
    assert sliced_wasserstein(a, b, 5, seed=1) == sliced_wasserstein(a, b, 5, seed=1)
    assert sliced_wasserstein(a, b, 5, seed=1) != sliced_wasserstein(a, b, 5, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_agreement_of_gaussians():
    """Means, deviations, correlation and coverage within 5 errors of 8,000 draws."""
    number = 8000
    truth = draws(number, [1.0, -2.0], [[4.0, 1.2], [1.2, 1.0]])  # correlation 0.6
    approximate = draws(number, [2.0, -2.0], [[1.0, 0.0], [0.0, 2.25]])
    found = compare_draws(approximate, truth, 0.8, num_directions=7)
    error = 5 / math.sqrt(number)
    torch.testing.assert_close(
        found.mean_error, torch.tensor([0.5, 0.0], dtype=torch.float64), rtol=0, atol=3 * error
    )
    torch.testing.assert_close(
        found.sd_ratio, torch.tensor([0.5, 1.5], dtype=torch.float64), rtol=2 * error, atol=0
    )
    assert found.correlation_error == pytest.approx(0.6, abs=3 * error)
    q = norm.ppf(0.9)
    expected = [
        norm.cdf((2 + q - 1) / 2) - norm.cdf((2 - q - 1) / 2),
        norm.cdf(1.5 * q) - norm.cdf(-1.5 * q),
    ]
    assert found.coverage.tolist() == pytest.approx(expected, abs=3 * error)
    assert found.level == 0.8
    standardized = [(x - truth.mean(0)) / truth.std(0) for x in (approximate, truth)]
    assert found.sliced_wasserstein == pytest.approx(sliced_wasserstein(*standardized, 7))


def test_agreement_with_itself():
    a = torch.randn(400, 3)
    found = compare_draws(a, a)
    assert found.mean_error.abs().max() < 1e-12
    torch.testing.assert_close(found.sd_ratio, torch.ones(3, dtype=torch.float64))
    assert found.correlation_error == 0
    assert found.sliced_wasserstein == 0
    assert found.coverage.tolist() == pytest.approx([0.9] * 3, abs=0.005)


def test_correlation_is_numpys_and_undefined_for_constants():
    a = torch.randn(50, 3)
    a[:, 1] += a[:, 0]
    np.testing.assert_allclose(
        correlation(a).numpy(), np.corrcoef(a.double().numpy().T), atol=1e-12
    )
    a[:, 2] = 1.5
    found = compare_draws(a, torch.randn(50, 3))
    assert math.isnan(found.correlation_error)
    assert found.sd_ratio[2] == 0
    assert found.coverage[2] == 0


def test_factorized_spread_is_the_optimum_of_the_elbo():
    """KL(q || p) of zero-mean Gaussians, minimized numerically over q's diagonal or blocks."""
    root = torch.randn(6, 6, dtype=torch.float64)
    covariance = root @ root.T + 0.5 * torch.eye(6, dtype=torch.float64)
    precision = covariance.inverse()
    for block in (1, 2, 3):
        members = torch.arange(6) % (6 // block)
        mask = (members[:, None] == members).double()
        factor = torch.eye(6, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([factor], max_iter=500, line_search_fn="strong_wolfe")

        def loss(factor=factor, mask=mask, optimizer=optimizer):
            optimizer.zero_grad()
            q = (factor * mask) @ (factor * mask).T
            value = (precision * q).sum() - torch.logdet(q)
            value.backward()
            return value

        optimizer.step(loss)
        q = (factor * mask) @ (factor * mask).T
        found = factorized_spread(covariance, block)
        torch.testing.assert_close(found, q.detach().diagonal().sqrt(), rtol=1e-4, atol=0)
    assert factorized_spread(covariance) == pytest.approx(precision.diagonal().rsqrt())
    torch.testing.assert_close(factorized_spread(covariance, 6), covariance.diagonal().sqrt())


def test_low_rank_spread():
    """Exact for a covariance of that form, whatever the rank allows; else between the extremes."""
    factor = torch.randn(8, 2, dtype=torch.float64)
    covariance = factor @ factor.T + torch.diag(torch.linspace(0.2, 1, 8, dtype=torch.float64))
    true = covariance.diagonal().sqrt()
    for rank in (2, 3, 8):
        torch.testing.assert_close(low_rank_spread(covariance, rank), true, rtol=1e-3, atol=0)
    mean_field, one = factorized_spread(covariance), low_rank_spread(covariance, 1)
    assert (one - mean_field > -1e-6).all()
    assert (mean_field / true).mean() < (one / true).mean() < 0.99
    for rank in (0, 9):
        with pytest.raises(OptionError, match=f"rank must be .*, got {rank}"):
            low_rank_spread(covariance, rank)


def test_latent_vectors():
    shift, scale = torch.randn(4, 3), torch.rand(4, 3) + 0.5
    found = latent_vectors(Draws(shift, scale))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.cat([shift, scale.log()], 1).double())


def test_refusals(unchecked):
    a = torch.randn(5, 3)
    with pytest.raises(ShapeError, match=r"of the same latents, got \(5, 3\) and \(5, 2\)"):
        compare_draws(a, a[:, :2])
    with pytest.raises(ShapeError, match="same latents"):
        sliced_wasserstein(a, a[:, :2])
    with pytest.raises(OptionError, match="at least 2 draws of each, got 1 and 5"):
        compare_draws(a[:1], a)
    with pytest.raises(OptionError, match="level must be between 0 and 1, got 1"):
        compare_draws(a, a, level=1.0)
    with pytest.raises(OptionError, match="num_directions must be at least 1, an integer, got 0"):
        sliced_wasserstein(a, a, 0)
    with pytest.raises(DataError, match="not finite"):
        compare_draws(a * math.nan, a)
    with pytest.raises(DataError, match="does not vary"):
        compare_draws(a, torch.cat([a[:, :2], torch.ones(5, 1)], 1))
    for block, message in ((0, "block must be at least 1"), (2, "3 latents have no blocks of 2")):
        with pytest.raises(OptionError, match=message):
            factorized_spread(torch.eye(3), block)


def test_what_is_no_covariance_is_refused():
    with pytest.raises(DataError, match="factorized_spread: covariance must be symmetric"):
        factorized_spread(torch.tensor([[1.0, 0.9], [0.0, 1.0]]))
