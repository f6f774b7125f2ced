"""Missing values against the same data with these left out, by brute force."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyronorm.errors import DataError
from pyronorm.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Likelihood,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    StudentT,
)
from pyronorm.likelihoods.missing import Weighted

BATCH, OUT = 5, (3, 2)

# likelihood, out, event
CASES = {
    "categorical": (Categorical(ignore_index=255), (4, *OUT), OUT),
    "categorical, in range": (Categorical(ignore_index=1), (4, *OUT), OUT),
    "ordinal": (Ordinal(4, ignore_index=-100), OUT, OUT),
    "bernoulli": (Bernoulli(), OUT, OUT),
    "normal": (Normal(0.7), OUT, OUT),
    "heteroscedastic": (HeteroscedasticNormal(0.1), (2, *OUT), OUT),
    "student": (StudentT(3.0, 0.5), OUT, OUT),
    "poisson": (Poisson(), OUT, OUT),
    "negative binomial": (NegativeBinomial(2.0), OUT, OUT),
    "gamma": (Likelihood.of(lambda o: dist.Gamma(2.0, o.exp())), OUT, OUT),
    "beta": (Likelihood.of(lambda o: dist.Beta(2.0, o.exp())), OUT, OUT),
}
cases = pytest.mark.parametrize(("likelihood", "out", "event"), CASES.values(), ids=CASES)


def data(likelihood, out, event, samples=()):
    """Outputs, complete data, data with some missing, and where they are observed."""
    output = torch.randn(*samples, BATCH, *out, dtype=torch.float64)
    likelihood.double()
    complete = likelihood.distribution(output.reshape(-1, BATCH, *out)[0]).sample()
    observed = torch.rand(BATCH, *event) < 0.6
    observed[1] = False  # an example without any
    observed[2] = True
    missing = math.nan if complete.is_floating_point() else likelihood.ignore_index
    if not complete.is_floating_point():  # the class that means missing is not among the observed
        complete = torch.where(complete == missing, 0, complete)
    return output, complete, torch.where(observed, complete, missing), observed


@cases
@pytest.mark.parametrize("samples", [(), (2,), (3, 2)], ids=str)
def test_log_likelihood_is_the_sum_over_observed_values(likelihood, out, event, samples):
    output, complete, y, observed = data(likelihood, out, event, samples)
    n = len(samples)
    per_value = likelihood.distribution(output, n).base_dist.log_prob(complete)
    expected = torch.where(observed, per_value, 0.0).flatten(n + 1).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(output, y, n), expected)
    assert torch.equal(likelihood.present(y), observed.flatten(1).any(1))
    assert torch.equal(likelihood.observed(y), observed)


@cases
def test_gradients_are_those_of_the_observed_values(likelihood, out, event):
    output, complete, y, observed = data(likelihood, out, event)
    output.requires_grad_()
    (found,) = torch.autograd.grad(likelihood.log_prob(output, y).sum(), output)
    per_value = likelihood.distribution(output).base_dist.log_prob(complete)
    (expected,) = torch.autograd.grad(per_value[observed].sum(), output)
    torch.testing.assert_close(found, expected)
    assert bool((found[1] == 0).all())


@cases
def test_scores_are_of_the_observed_values(likelihood, out, event):
    """As many as there are examples with data, and values; all finite."""
    output, _, y, observed = data(likelihood, out, event, (4,))
    found = likelihood.scores(output, y).values
    density = likelihood.log_prob(output, y, 1).logsumexp(0) - math.log(4)
    torch.testing.assert_close(found["log_prob"], density[likelihood.present(y)])
    for name, values in found.items():
        assert bool(values.isfinite().all()), name
        examples = int(observed.flatten(1).any(1).sum())
        assert len(values) == (examples if name == "log_prob" else int(observed.sum()))


def test_complete_data_are_as_without_a_mask():
    output = torch.randn(BATCH, 4, 3)
    y = torch.randint(4, (BATCH, 3))
    a = Categorical(ignore_index=-1).log_prob(output, y)
    torch.testing.assert_close(a, Categorical().log_prob(output, y), rtol=0, atol=0)


def test_without_ignore_index_no_class_is_missing():
    assert Categorical().observed(torch.tensor([-100, 0])) is None
    with pytest.raises(DataError, match="range from -100 to 0"):
        Categorical().log_prob(torch.zeros(2, 3), torch.tensor([-100, 0]))


def test_other_impossible_values_are_refused_beside_missing_ones():
    with pytest.raises(DataError, match="Categorical: y has values .* range from 0 to 3"):
        Categorical(ignore_index=-1).log_prob(torch.zeros(3, 3), torch.tensor([-1, 0, 3]))
    with pytest.raises(DataError, match="Bernoulli: y has values"):
        Bernoulli().log_prob(torch.zeros(2), torch.tensor([math.nan, 0.5]))


def test_vectors_missing_in_part_are_refused_in_whole_they_are_not():
    simplex = Likelihood.of(lambda o: dist.Dirichlet(o.exp()))
    y = torch.tensor([[0.2, 0.3, 0.5], [math.nan] * 3])
    found = simplex.log_prob(torch.zeros(2, 3), y)
    torch.testing.assert_close(found, torch.tensor([math.log(2.0), 0.0]))
    y[0, 1] = math.nan
    with pytest.raises(DataError, match="Dirichlet is a vector; one is missing in part"):
        simplex.log_prob(torch.zeros(2, 3), y)


def test_targets_missing_in_part_are_integrated_out():
    std, factor = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([[1.0], [-0.5], [0.3]])
    likelihood = MultivariateNormal(std, factor, learned=True).double()
    output = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 3, dtype=torch.float64)
    y[0, 1] = y[2] = y[3, 0] = math.nan
    found = likelihood.log_prob(output, y)
    for i, kept in ((0, [0, 2]), (1, [0, 1, 2]), (3, [1, 2])):
        covariance = likelihood.covariance[kept][:, kept]
        marginal = dist.MultivariateNormal(output[i, kept], covariance)
        torch.testing.assert_close(found[i], marginal.log_prob(y[i, kept]))
    assert float(found[2].detach()) == pytest.approx(0)
    found.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in (output, *likelihood.parameters()))
    assert bool((output.grad[y.isnan()] == 0).all())


def test_weighted_scales_the_density_alone():
    base = dist.Normal(torch.tensor([0.0, 1.0]), 2.0)
    weighted = Weighted(base, torch.tensor([0.0, 3.0]))
    y = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(weighted.log_prob(y), base.log_prob(y) * torch.tensor([0.0, 3.0]))
    assert weighted.sample((4,)).shape == (4, 2)
    assert weighted.support is base.support


def test_weights_of_classes_are_torchs_in_the_objective_alone():
    weight = torch.tensor([0.5, 2.0, 0.0])
    likelihood = Categorical(ignore_index=255, weight=weight)
    output, y = torch.randn(BATCH, 3, 4), torch.randint(3, (BATCH, 4))
    y[0, 1] = y[3] = 255
    distribution, filled = likelihood.objective(output, y)
    expected = -torch.nn.functional.cross_entropy(
        output, y, weight=weight, ignore_index=255, reduction="none"
    ).sum(1)
    torch.testing.assert_close(distribution.log_prob(filled), expected)
    plain = Categorical(ignore_index=255).log_prob(output, y)
    torch.testing.assert_close(likelihood.log_prob(output, y), plain)
    examples = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5])
    distribution, filled = likelihood.objective(output, y, weight=examples)
    torch.testing.assert_close(distribution.log_prob(filled), expected * examples)
