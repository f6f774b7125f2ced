"""Oracles: closed forms, and Monte Carlo over the data."""

import pyro.distributions as dist
import pytest
import torch

from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Likelihood,
    MultivariateNormal,
    Normal,
    Ordinal,
    Poisson,
    StudentT,
)

BATCH, OUT = 5, 3


def test_closed_forms():
    f = torch.randn(BATCH, OUT, dtype=torch.float64)
    p = f.softmax(1)
    one = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(Categorical().curvature(f), one)
    p = f.sigmoid()
    torch.testing.assert_close(Bernoulli().curvature(f), torch.diag_embed(p * (1 - p)))
    std = torch.tensor([0.5, 1.0, 2.0])
    expected = torch.diag_embed((std**-2).double().expand(BATCH, OUT))
    torch.testing.assert_close(Normal(std).curvature(f), expected)
    torch.testing.assert_close(Poisson().curvature(f), torch.diag_embed(f.exp()))
    likelihood = MultivariateNormal(std, torch.ones(3, 1)).double()
    expected = torch.linalg.inv(likelihood.covariance).expand(BATCH, OUT, OUT)
    torch.testing.assert_close(likelihood.curvature(f), expected)
    # two outputs: 1/σ² of the mean, 2 of the logarithm of the noise
    f = torch.randn(BATCH, 2, dtype=torch.float64)
    expected = torch.stack([(-2 * f[:, 1]).exp(), torch.full((BATCH,), 2.0).double()], 1)
    found = HeteroscedasticNormal().curvature(f)
    torch.testing.assert_close(found, torch.diag_embed(expected))


def test_it_is_the_variance_of_the_score():
    likelihood = Ordinal(torch.tensor([-1.0, 0.0, 2.0])).double()
    f = torch.randn(BATCH, 1, dtype=torch.float64).requires_grad_()
    total = torch.zeros(BATCH, dtype=torch.float64)
    for k in range(4):
        log_p = likelihood.log_prob(f, torch.full((BATCH, 1), k))
        (score,) = torch.autograd.grad(log_p.sum(), f)
        total += log_p.detach().exp() * score[:, 0].square()
    torch.testing.assert_close(likelihood.curvature(f)[:, 0, 0], total)


def test_saturated_outputs_stay_finite():
    f = torch.tensor([[500.0, 0.0, -500.0]])
    for likelihood in (Categorical(), Bernoulli()):
        assert bool(likelihood.curvature(f).isfinite().all())


def test_what_has_none():
    for likelihood in (StudentT(), Likelihood.of(lambda o: dist.VonMises(o, 1.0))):
        with pytest.raises(OptionError, match="torch knows none of (StudentT|VonMises)"):
            likelihood.curvature(torch.zeros(BATCH, OUT))
    with pytest.raises(ShapeError, match=r"outputs of shape \(batch, out\), got \(5, 3, 2\)"):
        Normal().curvature(torch.zeros(BATCH, OUT, 2))
