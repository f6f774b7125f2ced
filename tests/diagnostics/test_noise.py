"""Effective batch sizes and the test of the law, on banks whose law is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats as scipy_stats
from torch import Tensor, nn

from pyronorm import StatisticsBank, collect_bank, convert, estimate_population_statistics
from pyronorm.diagnostics import InputShape, moment_batch_sizes, noise_law_test
from pyronorm.diagnostics.noise import _from_log_var
from pyronorm.errors import OptionError, ShapeError
from pyronorm.latents import LatentLayer, LatentSpace
from pyronorm.stats import log_var_variance


def bank_of(values: Tensor, mean: float = 0.0, var: float = 1.0, sizes=None) -> StatisticsBank:
    """The bank of independent values (row, example, channel) with known population moments."""
    channels = values.shape[2]
    sizes = (channels,) if sizes is None else sizes
    return StatisticsBank(
        LatentSpace(tuple(LatentLayer(f"bn{i}", c, "Batch") for i, c in enumerate(sizes))),
        values.shape[1],
        values.mean(1),
        values.var(1, correction=0),
        torch.full((channels,), mean, dtype=values.dtype),
        torch.full((channels,), var, dtype=values.dtype),
        torch.full((channels,), 1e-3, dtype=values.dtype),
    )


def gaussian(rows: int, n: int, channels: int, sizes=None) -> StatisticsBank:
    x = 2 + 3 * torch.randn(rows, n, channels, dtype=torch.double)
    return bank_of(x, 2.0, 9.0, sizes)


def exponential(rows: int, n: int, channels: int) -> StatisticsBank:
    x = torch.empty(rows, n, channels, dtype=torch.double).exponential_()
    return bank_of(x, 1.0, 1.0)


@pytest.mark.parametrize("n", [1.5, 2.0, 7.0, 64.0, 5e4])
def test_from_log_var_inverts_the_variance_of_the_law(n):
    variance = log_var_variance(n)
    assert float(_from_log_var(variance)) == pytest.approx(n, rel=1e-9)


@pytest.mark.parametrize("n", [6, 40])
def test_intervals_of_channels_cover_n_at_their_level(n):
    """600 intervals of 90 %: coverage within 4.5 standard errors (0.055), false alarm 7e-6 each."""
    sizes = moment_batch_sizes(gaussian(80, n, 600), level=0.9)
    for found in (sizes.channel_shift, sizes.channel_scale):
        covered = ((found.low < n) & (n < found.high)).double().mean()
        assert abs(float(covered) - 0.9) < 4.5 * math.sqrt(0.09 / 600)
        assert bool((found.low < found.value).all())
        assert bool((found.value < found.high).all())


def test_interval_of_a_shift_is_the_chi_square_one():
    bank = gaussian(50, 9, 3)
    found = moment_batch_sizes(bank, level=0.8).channel_shift
    shift = (2 - bank.mean) / 3
    for c in range(3):
        v = np.var(shift[:, c].numpy(), ddof=1)
        assert float(found.value[c]) == pytest.approx(1 / v)
        low, high = scipy_stats.chi2.ppf([0.1, 0.9], 49) / (49 * v)
        assert (float(found.low[c]), float(found.high[c])) == pytest.approx((low, high))


def test_intervals_of_layers_count_that_channels_are_correlated():
    """60 layers of 8 equal channels: a bootstrap over values would cover 95 % in about half."""
    n, rows = 20, 200
    x = torch.randn(rows, n, 60, dtype=torch.double).repeat_interleave(8, 2)
    sizes = moment_batch_sizes(bank_of(x, sizes=(8,) * 60))
    for found in (sizes.layer_shift, sizes.layer_scale):
        covered = int(((found.low < n) & (n < found.high)).sum())
        assert covered >= 49  # binomial(60, .92), the level that percentiles keep: 0.4 %


def test_layers_are_means_of_variances_and_leave_constant_channels_out():
    bank = gaussian(60, 16, 7, sizes=(4, 3))
    alone = moment_batch_sizes(bank)
    mean, var = bank.mean.clone(), bank.var.clone()
    mean[:, 1], var[:, 1] = 5.0, 0.0  # constant
    mean[:, 4:], var[:, 4:] = torch.nan, torch.nan  # no batch statistics
    found = moment_batch_sizes(replace(bank, mean=mean, var=var))
    assert found.channel_shift.value.isnan().tolist() == [False, True, False, False] + [True] * 3
    v = 1 / alone.channel_shift.value[[0, 2, 3]]
    assert float(found.layer_shift.value[0]) == pytest.approx(1 / float(v.mean()))
    trigamma = log_var_variance(alone.channel_scale.value[[0, 2, 3]])
    spread = log_var_variance(found.layer_scale.value[:1])
    assert float(spread) == pytest.approx(float(trigamma.mean()))
    assert bool(found.layer_shift.value[1].isnan())
    test = noise_law_test(replace(bank, mean=mean, var=var), 16)
    assert list(test.p) == ["bn0"]
    assert test.p_shift.isnan().tolist() == found.channel_shift.value.isnan().tolist()


def test_the_bootstrap_leaves_the_generator_alone():
    bank = gaussian(30, 8, 2)
    state = torch.get_rng_state()
    first, again = moment_batch_sizes(bank), moment_batch_sizes(bank)
    assert torch.equal(first.layer_shift.low, again.layer_shift.low)
    assert torch.equal(state, torch.get_rng_state())


def smooth(num: int, channels: int, side: int) -> Tensor:
    return F.interpolate(torch.randn(num, channels, side // 4, side // 4), side, mode="bilinear")


@pytest.mark.parametrize("smoothly", [False, True])
def test_effective_batch_size_of_images(smoothly):
    """White noise is worth N H W = 512 values a channel, smooth images far fewer.

    Layer intervals at 99.9 %, so white noise fails in about 1 run of 500.
    """
    network = convert(nn.Sequential(nn.BatchNorm2d(5)))
    x = smooth(3000, 5, 8) if smoothly else torch.randn(3000, 5, 8, 8)
    estimate_population_statistics(network, x)
    loader = [x[torch.randint(3000, (8,))] for _ in range(300)]
    found = moment_batch_sizes(collect_bank(network, loader), level=0.999)
    for interval in (found.layer_shift, found.layer_scale):
        low, high = float(interval.low), float(interval.high)
        assert high < 512 / 2 if smoothly else low < 512 < high
    assert found.batch_size == 8


@pytest.mark.parametrize("n", [6, 48])
@pytest.mark.parametrize("given", [True, False])
def test_the_law_is_accepted_for_gaussian_values_at_the_stated_level(n, given):
    """200 layers of 3 channels at level 5 %: binomial(200, .05) exceeds 24 in 1 of 30,000 runs."""
    bank = gaussian(120, n, 600, sizes=(3,) * 200)
    test = noise_law_test(bank, n if given else None, level=0.05)
    assert len(test.rejected) == 200
    assert sum(test.rejected.values()) <= 24
    if given:
        # Not conservative beyond Bonferroni either: the bound would be 10 of 200.
        assert sum(test.rejected.values()) >= 1


@pytest.mark.parametrize("given", [True, False])
def test_the_law_is_rejected_for_skewed_values(given):
    test = noise_law_test(exponential(200, 16, 4), 16 if given else None, level=0.001)
    assert test.rejected == {"bn0": True}
    assert float(test.p_scale.max()) < 1e-4  # Var S^2 is (6 + 2)/n, not 2/n
    assert float(test.p_correlation.max()) < 1e-4  # the correlation is about 2 / sqrt(8)


def test_the_law_is_rejected_at_another_n_only():
    bank = gaussian(200, 16, 4)
    assert noise_law_test(bank, 16, level=0.001).rejected == {"bn0": False}
    for n in (11, 24):
        test = noise_law_test(bank, n, level=0.001)
        assert test.rejected == {"bn0": True}
        assert float(test.p_shift.min()) < 0.01
        assert float(test.p_scale.min()) < 1e-3


def test_the_law_is_rejected_for_correlated_shift_and_scale_alone():
    bank = gaussian(300, 16, 4)
    rank = (bank.mean + torch.randn_like(bank.mean)).argsort(0).argsort(0)
    var = bank.var.sort(0).values.gather(0, rank)  # the same variances, in an order like the means'
    test = noise_law_test(replace(bank, var=var), 16, level=0.01)
    assert test.rejected == {"bn0": True}
    assert float(test.p_correlation.max()) < 0.01


SKEWED = {  # sampler, mean, variance, skewness, excess kurtosis
    "exponential": (lambda s: torch.empty(s, dtype=torch.double).exponential_(), 1, 1, 2, 6),
    "uniform": (lambda s: torch.rand(s, dtype=torch.double), 0.5, 1 / 12, 0, -1.2),
}


@pytest.mark.parametrize("kind", SKEWED)
@pytest.mark.parametrize("given", [True, False])
def test_the_corrected_law_is_accepted_where_moments_are_right(kind, given):
    """100 layers of 2 channels at 5 %. Studentized, so somewhat above: at most 14 of 100."""
    sample, mean, var, skewness, kurtosis = SKEWED[kind]
    n, rows = 64, 600
    bank = bank_of(sample((rows, n, 200)), mean, var, sizes=(2,) * 100)
    ones = torch.ones(200)
    shape = InputShape(bank.space, skewness * ones, kurtosis * ones)
    test = noise_law_test(bank, n if given else None, shape=shape, level=0.05)
    assert sum(test.rejected.values()) <= 14
    wrong = InputShape(bank.space, 0 * ones, 0 * ones)
    test = noise_law_test(bank, n if given else None, shape=wrong, level=0.05)
    assert sum(test.rejected.values()) >= 95


def test_errors():
    bank = gaussian(20, 5, 2)
    few = gaussian(19, 5, 2)
    for call in (moment_batch_sizes, noise_law_test):
        with pytest.raises(OptionError, match="at least 20 rows, got 19"):
            call(few)
        with pytest.raises(OptionError, match="level must be between 0 and 1, got 1"):
            call(bank, level=1.0)
    with pytest.raises(OptionError, match="n must be a finite number above 1, got 1"):
        noise_law_test(bank, 1)
    other = InputShape(bank.space, torch.zeros(3), torch.zeros(3))
    with pytest.raises(ShapeError, match="2 channels, shape has"):
        noise_law_test(bank, shape=other)
