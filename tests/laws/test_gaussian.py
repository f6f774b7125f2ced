"""Oracle: Pyro's distribution, whose Cholesky decomposition raises where it fails."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyronorm.laws.gaussian import LowRankNormal


def arguments(size: int = 6, rank: int = 2):
    torch.manual_seed(0)
    loc, factor = torch.randn(size).double(), torch.randn(size, rank).double()
    return loc, factor, torch.rand(size).double() + 0.1


def test_it_is_pyros():
    given = arguments()
    ours, theirs = LowRankNormal(*given), dist.LowRankMultivariateNormal(*given)
    for shape in ((), (3,)):
        here, there = ours.expand(shape), theirs.expand(shape)
        assert here.batch_shape == there.batch_shape
        torch.manual_seed(1)
        value = here.rsample()
        torch.manual_seed(1)
        torch.testing.assert_close(value, there.rsample())
        torch.testing.assert_close(here.log_prob(value), there.log_prob(value))
    for name in ("mean", "variance", "covariance_matrix"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_where_the_decomposition_fails_the_density_is_nan():
    loc, factor, diagonal = (part.float() for part in arguments())
    apart = LowRankNormal(loc, factor * 1e10, diagonal * 1e-20)
    assert apart.log_prob(loc + 1).isnan()
