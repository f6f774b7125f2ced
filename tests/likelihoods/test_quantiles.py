"""Distribution functions and quantiles against scipy, and against samples."""

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyronorm.likelihoods.mixture import mixture_samples
from pyronorm.likelihoods.quantiles import below, mixture_quantiles

DRAWS, BATCH = 5, 7
Q = torch.tensor([0.025, 0.3, 0.5, 0.95])

CASES = {
    "normal": (lambda o: dist.Normal(o, 0.6), lambda m: scipy.stats.norm(m, 0.6)),
    "student": (lambda o: dist.StudentT(2.5, o, 0.6), lambda m: scipy.stats.t(2.5, m, 0.6)),
    "laplace": (lambda o: dist.Laplace(o, 0.6), lambda m: scipy.stats.laplace(m, 0.6)),
    "gamma": (
        lambda o: dist.Gamma(2.0, o.exp()),
        lambda m: scipy.stats.gamma(2.0, scale=np.exp(-m)),
    ),
    "log normal": (
        lambda o: dist.LogNormal(o, 0.6),
        lambda m: scipy.stats.lognorm(0.6, scale=np.exp(m)),
    ),
    "poisson": (lambda o: dist.Poisson(o.exp()), lambda m: scipy.stats.poisson(np.exp(m))),
    "negative binomial": (
        lambda o: dist.NegativeBinomial(2.5, logits=o),
        lambda m: scipy.stats.nbinom(2.5, 1 / (1 + np.exp(m))),
    ),
    "binomial": (
        lambda o: dist.Binomial(6, logits=o),
        lambda m: scipy.stats.binom(6, 1 / (1 + np.exp(-m))),
    ),
    "bernoulli": (
        lambda o: dist.Bernoulli(logits=o),
        lambda m: scipy.stats.bernoulli(1 / (1 + np.exp(-m))),
    ),
}
cases = pytest.mark.parametrize(("make", "theirs"), CASES.values(), ids=CASES)


@cases
def test_below_is_the_mean_of_scipys_distribution_functions(make, theirs):
    output = 1.5 * torch.randn(DRAWS, BATCH, dtype=torch.float64)
    distribution = make(output)
    y = mixture_samples(distribution, 10, seed=2)[3].double()
    at, under = below(distribution, y)
    components = theirs(output.numpy())
    np.testing.assert_allclose(at, components.cdf(y.numpy()).mean(0), rtol=1e-7, atol=1e-12)
    if hasattr(components.dist, "pmf"):
        y = y - 1
    np.testing.assert_allclose(under, components.cdf(y.numpy()).mean(0), rtol=1e-7, atol=1e-12)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_invert_the_distribution_function(make, theirs, dtype):
    output = 1.5 * torch.randn(DRAWS, BATCH, dtype=dtype)
    found = mixture_quantiles(make(output), Q)
    assert found.shape == (len(Q), BATCH)
    assert found.dtype == dtype
    components = theirs(output.double().numpy())
    for q, row in zip(Q.double().numpy(), found.double().numpy(), strict=True):
        if hasattr(components.dist, "pmf"):
            assert (components.cdf(row).mean(0) >= q - 1e-6).all()
            assert (components.cdf(row - 1).mean(0) < q + 1e-6).all()
        else:
            np.testing.assert_allclose(components.cdf(row).mean(0), q, atol=1e-4)


def test_unknown_distribution_functions_are_sampled():
    output = torch.randn(DRAWS, BATCH, dtype=torch.float64)
    distribution = dist.Beta(2.0, output.exp())
    components = scipy.stats.beta(2.0, np.exp(output.numpy()))
    for q, row in zip(Q.numpy(), mixture_quantiles(distribution, Q).numpy(), strict=True):
        np.testing.assert_allclose(components.cdf(row).mean(0), q, atol=0.05)
    y = distribution.sample()[0]
    at, under = below(distribution, y)
    np.testing.assert_allclose(at, components.cdf(y.numpy()).mean(0), atol=0.05)
    torch.testing.assert_close(under, at, rtol=0, atol=1e-3)


def test_components_of_vectors():
    mean = torch.randn(DRAWS, BATCH, 2, dtype=torch.float64)
    factor, variance = torch.tensor([[1.0], [0.5]]).double(), torch.tensor([0.3, 0.2]).double()
    distribution = dist.LowRankMultivariateNormal(mean, factor, variance)
    std = (variance + factor[:, 0].square()).sqrt()
    same = dist.Normal(mean, std.expand(mean.shape))
    torch.testing.assert_close(mixture_quantiles(distribution, Q), mixture_quantiles(same, Q))
    simplex = dist.Dirichlet(mean.exp())
    found = mixture_quantiles(simplex, Q)
    assert found.shape == (len(Q), BATCH, 2)
    ones = torch.ones(BATCH, dtype=torch.float64)
    torch.testing.assert_close(
        found[1, :, 0] + mixture_quantiles(simplex, 1 - Q)[1, :, 1], ones, rtol=0, atol=2e-3
    )


def test_far_away_and_wide():
    """The search leaves its first bracket, on either side."""
    output = torch.tensor([[-1e5], [1e5], [1e5], [1e5]]).double()
    found = mixture_quantiles(dist.Normal(output, 1e-3), torch.tensor([0.01, 0.9]))
    torch.testing.assert_close(found[:, 0], torch.tensor([-1e5, 1e5]).double(), rtol=1e-7, atol=0)
    heavy = mixture_quantiles(dist.Cauchy(output, 1.0), torch.tensor([1e-7]))
    assert float(heavy) < -1e6
