"""Ranks under the exact posterior, under mean field at its optimum, and under NUTS.

The linear-Gaussian model of one channel: given the scale the posterior of the shift is normal, and the
marginal posterior of the log scale is a function on a line, so exact draws are cheap.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from pyronorm.diagnostics import Calibration, Uniformity, simulation_based_calibration
from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.guides import MeanField, Point
from pyronorm.infer import run_nuts
from pyronorm.latents import Draws
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.guides.cases import make_model
from tests.guides.conjugate import Conjugate

SHIFT_STD, LOG_SCALE_STD, STD = 0.5, 0.4, 1.5


def problem(num_data: int = 20, offset: float = 1.0) -> Conjugate:
    """Inputs off the reference mean: shift and log scale have correlated posteriors."""
    return Conjugate(Standard(SHIFT_STD, LOG_SCALE_STD), num_data, STD, offset)


class Exact:
    """The exact posterior: log scale on a line, the shift normal given it."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        x_hat = (x[:, 0] - 0.5) / (2.0 + 1e-5) ** 0.5
        self.log_scale = torch.linspace(-2, 2, 2001, dtype=torch.float64)
        a = 1.3 * self.log_scale.exp()
        rest = y[:, 0] - 0.4 - a[:, None] * x_hat
        number, total = len(y), rest.sum(1)
        self.precision = 1 / SHIFT_STD**2 + number * a.square() / STD**2
        self.mean = a * total / STD**2 / self.precision
        spread = number * (a * SHIFT_STD / STD).square()
        squares = rest.square().sum(1) - total.square() * spread / (1 + spread) / number
        log_p = -0.5 * (squares / STD**2 + spread.log1p())
        log_p = log_p - 0.5 * (self.log_scale / LOG_SCALE_STD).square()
        self.weight = (log_p - log_p.logsumexp(0)).exp()

    def draws(self, number: int) -> Draws:
        index = torch.multinomial(self.weight, number, replacement=True)
        shift = self.mean[index] + torch.randn(number).double() / self.precision[index].sqrt()
        # Spread out between the points of the grid.
        log_scale = self.log_scale[index] + 0.002 * (torch.rand(number).double() - 0.5)
        return Draws(shift[:, None], log_scale.exp()[:, None])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of (shift, log scale)."""
        mean = torch.stack([self.weight @ self.mean, self.weight @ self.log_scale])
        centred = torch.stack([self.mean - mean[0], self.log_scale - mean[1]])
        covariance = (self.weight * centred) @ centred.T
        covariance[0, 0] += self.weight @ (1 / self.precision)
        return mean, covariance


def test_the_exact_posterior_agrees_with_the_grid_of_the_plane():
    conjugate = problem()
    mean, covariance = Exact(conjugate.x, conjugate.y).moments()
    weight = conjugate.posterior()
    values = torch.stack([conjugate.shift, conjugate.log_scale])
    expected = (weight * values).sum((1, 2))
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-4)
    centred = values - expected[:, None, None]
    torch.testing.assert_close(
        covariance, torch.einsum("ijk,ljk,jk->il", centred, centred, weight), rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
def test_ranks_are_uniform_for_the_exact_posterior():
    """False alarm 0.001 for both latents together (Bonferroni)."""
    conjugate = problem()
    found = simulation_based_calibration(
        conjugate.model, conjugate.x, lambda x, y: Exact(x, y).draws(19), 200, 19, seed=1
    )
    assert found.shift.shape == found.scale.shape == (200, 1)
    assert 0 <= int(found.shift.min()) < int(found.shift.max()) <= 19
    test = found.uniformity(bins=10, level=0.001)
    assert not test.rejected
    assert found.labels == ("0[0]",)


def mean_field_at_its_optimum(conjugate: Conjugate, x: Tensor, y: Tensor, ratios: list[float]):
    """Means of the posterior, and 1/sqrt(precision_ii) for standard deviations."""
    mean, covariance = Exact(x, y).moments()
    std = covariance.inverse().diagonal().rsqrt()
    ratios.append(float(std[0] / covariance[0, 0].sqrt()))
    guide = MeanField(conjugate.model).double()
    with torch.no_grad():
        guide.shift_loc.copy_(mean[0])
        guide.log_scale_loc.copy_(mean[1])
        guide.shift_log_std.copy_(std[0].log())
        guide.log_scale_log_std.copy_(std[1].log())
    return guide


def rank_probabilities(ratio: float, num_draws: int) -> np.ndarray:
    r"""Ranks under a Gaussian q as wide as ``ratio`` times the Gaussian posterior.

    Given :math:`z^* = m + sZ` a draw is below it with probability :math:`u = \Phi(Z/r)`, so the rank is
    binomial given ``Z``; integrated over ``Z`` by Gauss-Hermite quadrature. ``u`` has the density
    :math:`r \varphi(r\Phi^{-1}(u))/\varphi(\Phi^{-1}(u))`, U-shaped for r < 1.
    """
    z, weight = np.polynomial.hermite_e.hermegauss(150)
    u = scipy.stats.norm.cdf(z / ratio)
    ranks = np.arange(num_draws + 1)
    ways = np.array([math.comb(num_draws, rank) for rank in ranks])
    binomial = ways[:, None] * u ** ranks[:, None] * (1 - u) ** (num_draws - ranks[:, None])
    return binomial @ (weight / weight.sum())


def test_predicted_ranks_are_uniform_without_bias_and_a_u_with():
    np.testing.assert_allclose(rank_probabilities(1.0, 19), np.full(20, 0.05), atol=1e-4)
    narrow = rank_probabilities(0.6, 19)
    assert narrow.sum() == pytest.approx(1)
    assert narrow[0] == pytest.approx(narrow[19], rel=1e-6)
    assert narrow[0] > 2 * 0.05 > 0.05 > narrow[9]


@pytest.mark.slow
def test_mean_field_heaps_ranks_up_at_both_ends_as_predicted():
    """Uniformity rejected; the predicted U not, at false-alarm rate 0.001 for the two latents."""
    conjugate = problem(num_data=150, offset=1.5)  # so many that the posterior is nearly Gaussian
    ratios: list[float] = []
    found = simulation_based_calibration(
        conjugate.model,
        conjugate.x,
        lambda x, y: mean_field_at_its_optimum(conjugate, x, y, ratios),
        200,
        19,
        seed=2,
    )
    assert 0.4 < np.mean(ratios) < 0.75  # sqrt(1 - correlation^2), the same for both latents
    assert found.uniformity(bins=10, level=1e-6).rejected
    probability = np.mean([rank_probabilities(r, 19) for r in ratios], axis=0)
    expected = 200 * probability.reshape(10, 2).sum(1)
    for counts in found.histogram(10).values():
        assert scipy.stats.chisquare(counts[0].numpy(), expected).pvalue > 0.001 / 2
        assert counts[0, [0, 9]].min() > 1.3 * 20 > 20 > counts[0, 4:6].max()


@pytest.mark.slow
def test_ranks_are_uniform_for_nuts():
    """False alarm 0.001; chains of 80 draws, 19 of them, which are nearly independent."""
    conjugate = problem()

    def fit(x: Tensor, y: Tensor) -> Draws:
        return run_nuts(conjugate.model, (x, y), 80, 60, 1, progress=False)

    found = simulation_based_calibration(conjugate.model, conjugate.x, fit, 50, 19, seed=3)
    assert not found.uniformity(bins=10, level=0.001).rejected


def calibration(shift: Tensor, num_draws: int) -> Calibration:
    return Calibration(shift, shift.flip(0), num_draws, tuple("abcd"[: shift.shape[1]]))


def test_histogram_and_chi_square():
    ranks = torch.tensor([[0, 5], [1, 4], [2, 3], [5, 5], [4, 5], [0, 5]]).repeat(2, 1)
    found = calibration(ranks, 5)
    counts = found.histogram(2)
    assert counts["shift"].tolist() == [[8, 4], [0, 12]]
    assert counts["scale"].tolist() == [[8, 4], [0, 12]]
    assert found.histogram(6)["shift"][0].tolist() == [4, 2, 2, 0, 2, 2]
    test = found.uniformity(2, level=0.05)
    expected = [scipy.stats.chisquare(row).pvalue for row in ([8, 4], [0, 12])]
    assert test.shift.tolist() == pytest.approx(expected)
    assert test.p == pytest.approx(4 * expected[1])
    assert test.rejected
    assert not found.uniformity(2, level=1e-4).rejected
    high = torch.tensor([0.5, 0.9])
    assert Uniformity(high, high, 0.01).p == 1.0


def test_uniformity_holds_its_level():
    """300 calibrations of 6 latents at level 0.1: rejected at most as often, within 4 errors."""
    rejected = sum(
        calibration(torch.randint(20, (60, 3)), 19).uniformity(10, 0.1).rejected for _ in range(300)
    )
    assert 0.02 * 300 < rejected < 0.1 * 300 + 4 * math.sqrt(300 * 0.09)


def test_each_channel_is_ranked_by_itself():
    """Draws at known places: the truth of every channel is above exactly those below it."""
    model = make_model(prior=BatchNoise(1e4))  # latents within 0.05 of neutral
    x = torch.randn(50, 5)
    place = torch.arange(10) - 5.0

    def fit(x: Tensor, y: Tensor) -> Draws:
        assert y.shape == (50,)
        shift = place + torch.tensor([[0.5], [0.5], [20.0]])
        scale = torch.tensor([0.5, 1.5, 2.0])[:, None].expand(3, 10)
        return Draws(shift, scale)

    seen: list[int] = []
    state = torch.get_rng_state()
    found = simulation_based_calibration(model, x, fit, 4, 3, seed=0, report=seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [0, 1, 2, 3]
    assert found.shift.tolist() == [[2] * 5 + [0] * 5] * 4
    assert (found.scale == 1).all()
    assert found.labels == model.space.channel_labels


def test_data_are_those_of_the_model():
    """Simulated y have the mean and deviation that the true latents give (5 errors of 400 values)."""
    conjugate = Conjugate(BatchNoise(1e8), 400, STD, 1.0)
    mean = conjugate.model.network(conjugate.x)
    ys: list[Tensor] = []

    def fit(x: Tensor, y: Tensor):
        assert x is conjugate.x
        ys.append(y)
        return Point(conjugate.model)

    simulation_based_calibration(conjugate.model, conjugate.x, fit, 2, 5, seed=5)
    assert not torch.equal(ys[0], ys[1])
    rest = ys[0] - mean.detach()
    assert abs(rest.mean()) < 5 * STD / 20
    assert abs(rest.std() / STD - 1) < 5 / math.sqrt(800)


def test_refusals(unchecked):
    conjugate = problem()
    model, x = conjugate.model, conjugate.x

    def run(fit=lambda x, y: Exact(x, y).draws(5), model=model, x=x, sims=2, draws=5):
        return simulation_based_calibration(model, x, fit, sims, draws)

    with pytest.raises(OptionError, match="num_simulations must be at least 1, an integer, got 0"):
        run(sims=0)
    with pytest.raises(OptionError, match="num_draws must be at least 1, an integer, got 0"):
        run(draws=0)
    with pytest.raises(OptionError, match="num_data=20 examples, got 7"):
        run(x=x[:7])
    with pytest.raises(OptionError, match="between 1 and 5, the number of draws"):
        run(draws=9)
    with pytest.raises(ShapeError, match="expected 1 channels"):
        run(lambda x, y: Draws(torch.zeros(5, 2), torch.ones(5, 2)))
    improper = Conjugate(ScaleInvariant(), 20, STD, 1.0).model
    with pytest.raises(OptionError, match="the prior is improper"):
        run(model=improper)
    ranks = torch.zeros(20, 2, dtype=torch.long)
    for bins in (1, 7):
        with pytest.raises(OptionError, match=f"divide the 20 possible ranks, got {bins}"):
            calibration(ranks, 19).histogram(bins)
    with pytest.raises(OptionError, match=r"2.0 each, too few .* at most 4 bins"):
        calibration(ranks, 19).uniformity(10)
    stale = make_model()
    stale.num_data = 3
    stale.network.network[0].weight.data.add_(1.0)
    with pytest.raises(StatisticsError):
        run(model=stale, x=torch.randn(3, 5))


def test_a_fit_that_seeds_the_generators_does_no_harm():
    case = problem()
    data = []

    def fit(x, y):
        torch.manual_seed(0)  # as pn.fit(seed=0) does
        data.append(y.clone())
        return Exact(x, y).draws(9)

    state = torch.get_rng_state()
    found = simulation_based_calibration(
        case.model, case.x, fit, num_simulations=6, num_draws=9, seed=5
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(y.flatten().tolist()) for y in data}) == 6
    assert len(torch.unique(found.shift)) > 1
