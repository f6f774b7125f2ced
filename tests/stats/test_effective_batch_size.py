"""Oracles: simulated Gaussian batches, the log likelihood maximized by scipy."""

import math

import pytest
import scipy.optimize
import scipy.stats
import torch

from pyronorm.errors import OptionError, ShapeError
from pyronorm.stats import effective_batch_size
from pyronorm.stats.effective_batch_size import size_of_discrepancy


def batches(n, rows, channels):
    """Shift and scale of simulated Gaussian batches."""
    x = torch.randn(rows, channels, n, dtype=torch.float64)
    var, mean = torch.var_mean(x, -1, correction=0)
    return -mean, var.rsqrt()


def test_it_maximizes_the_likelihood():
    parts = [batches(n, 40, c) for n, c in ((6, 3), (50, 2))]
    shift, scale = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    # channels of a group need not lie together
    order = torch.tensor([3, 0, 4, 2, 1])
    groups = torch.tensor([0, 0, 0, 1, 1])[order]
    found = effective_batch_size(shift[:, order], scale[:, order], groups)
    for g, (s, r) in enumerate(parts):

        def loss(log_df, s=s, r=r):
            n = 1 + math.exp(log_df)
            log_p = scipy.stats.norm(0, n**-0.5).logpdf(s).sum()
            return -log_p - scipy.stats.gamma((n - 1) / 2, scale=2 / n).logpdf(r**-2).sum()

        best = scipy.optimize.minimize_scalar(loss, bounds=(0, 8), options={"xatol": 1e-8})
        assert found.estimate[g].item() == pytest.approx(1 + math.exp(best.x), rel=1e-5)
        assert found.lower[g] < found.estimate[g] < found.upper[g]


@pytest.mark.parametrize(("n", "shared"), [(4, False), (32, False), (32, True)])
def test_intervals_cover_the_batch_size_of_gaussian_batches(n, shared):
    covered = []
    for _ in range(300):
        shift, scale = batches(n, 100, 1 if shared else 2)
        if shared:  # fully dependent channels tell no more than one does
            shift, scale = shift.expand(-1, 5), scale.expand(-1, 5)
        groups = torch.zeros(shift.shape[1], dtype=torch.long)
        found = effective_batch_size(shift, scale, groups, confidence=0.9)
        covered.append(bool(found.lower[0] < n < found.upper[0]))
    # binomial(300, 0.9): 4 standard deviations are 0.07
    assert sum(covered) / 300 == pytest.approx(0.9, abs=0.07)


def test_correlated_values_count_less():
    """Pairs of equal values: half as many independent ones."""
    x = torch.randn(2000, 1, 12, dtype=torch.float64).repeat(1, 1, 2)
    var, mean = torch.var_mean(x, -1, correction=0)
    groups = torch.zeros(1, dtype=torch.long)
    found = effective_batch_size(-mean, var.rsqrt(), groups, confidence=0.9999)
    assert found.lower[0] < 12 < found.upper[0]


def test_solves_the_equation():
    n = torch.tensor([[1.001, 1.5, 3.0], [64.0, 1e4, 1e7]], dtype=torch.float64)
    d = torch.log(n / 2) - torch.digamma((n - 1) / 2)
    torch.testing.assert_close(size_of_discrepancy(d), n, rtol=1e-6, atol=0)


def test_channels_without_noise_and_channels_left_out():
    shift, scale = batches(8, 30, 4)
    shift[:, 0], scale[:, 0] = 0, 1
    shift[:, 2] = torch.nan
    groups = torch.tensor([0, 1, 2, 1])
    found = effective_batch_size(shift, scale, groups)
    assert found.estimate[[0, 2]].isinf().all()
    rest = effective_batch_size(shift[:, [1, 3]], scale[:, [1, 3]], torch.tensor([0, 0]))
    for a, b in ((found.estimate, rest.estimate), (found.lower, rest.lower)):
        assert a[1] == b[0]


def test_float32():
    shift, scale = batches(20, 50, 3)
    groups = torch.tensor([0, 1, 1])
    a = effective_batch_size(shift, scale, groups)
    b = effective_batch_size(shift.float(), scale.float(), groups)
    torch.testing.assert_close(a.upper, b.upper, rtol=1e-4, atol=0)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    shift, scale = batches(8, 5, 3)
    groups = torch.tensor([0, 0, 1])
    with pytest.raises(ShapeError, match=r"groups of shape \(channel,\), got"):
        effective_batch_size(shift, scale, groups[:2])
    with pytest.raises(OptionError, match="at least 2 rows, got 1"):
        effective_batch_size(shift[:1], scale[:1], groups)
    with pytest.raises(OptionError, match=r"confidence must be between 0 and 1, got 1"):
        effective_batch_size(shift, scale, groups, confidence=1.0)
