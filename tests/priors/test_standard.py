"""Oracle: scipy's normal and log-normal laws."""

import math

import pytest
import scipy.stats
import torch
from torch.distributions import kl_divergence

from pyronorm.errors import OptionError
from pyronorm.priors import Standard
from tests.priors.laws import pair

WIDTHS = [(0.3, 0.7), (2.0, 0.1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shift_std", "log_scale_std"), WIDTHS)
def test_densities_match_scipy(shift_std, log_scale_std, dtype):
    shift, scale = pair(Standard(shift_std, log_scale_std), 3, torch.zeros(1, dtype=dtype))
    x = torch.tensor([[0.7, 1.1, 1.9], [0.4, 2.0, 1.0]], dtype=dtype)
    laws = scipy.stats.norm(0, shift_std), scipy.stats.lognorm(log_scale_std)
    for d, law in zip((shift, scale), laws, strict=True):
        expected = torch.as_tensor(law.logpdf(x.double().numpy()).sum(1), dtype=dtype)
        torch.testing.assert_close(d.log_prob(x), expected)


@pytest.mark.parametrize(("shift_std", "log_scale_std"), WIDTHS)
def test_draws_follow_the_law(shift_std, log_scale_std):
    """Goodness of fit, false alarms at a rate of 1e-4 each."""
    like = torch.zeros(1, dtype=torch.float64)
    shift, scale = pair(Standard(shift_std, log_scale_std), 2, like)
    x, y = shift.sample((5000,)).flatten(), scale.sample((5000,)).flatten().log()
    assert scipy.stats.kstest(x.numpy(), scipy.stats.norm(0, shift_std).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(y.numpy(), scipy.stats.norm(0, log_scale_std).cdf).pvalue > 1e-4


def test_default_widths_are_one():
    assert Standard() == Standard(1.0, 1.0) == Standard(shift_std=1.0, log_scale_std=1.0)
    assert Standard() != Standard(1.0, 2.0)


def test_kl_between_widths():
    """log(t/s) + s²/2t² - 1/2 per channel, for the shift and, in the logarithm, for the scale."""
    like = torch.zeros(1, dtype=torch.float64)
    q, p = (pair(Standard(*w), 3, like) for w in [(0.5, 0.2), (1.5, 0.9)])
    for a, b, s, t in zip(q, p, (0.5, 0.2), (1.5, 0.9), strict=True):
        expected = 3 * (math.log(t / s) + s**2 / (2 * t**2) - 0.5)
        assert kl_divergence(a, b).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["shift_std", "log_scale_std"])
@pytest.mark.parametrize("value", [0.0, -0.5, math.inf, math.nan])
def test_refuses_widths(name, value):
    match = rf"^Standard: {name} must be positive and finite, got {value}\.$"
    with pytest.raises(OptionError, match=match):
        Standard(**{name: value})
