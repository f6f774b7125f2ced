from __future__ import annotations

import pytest
import torch
from pyro import distributions as dist

import pyronorm as pn
from pyronorm.errors import OptionError
from pyronorm.likelihoods import Tempered
from tests.nets import mlp

T = 2.5


def log_power(log_prob, values, measure=1.0):
    """Brute force: the density to the power 1/T over a grid of all values, normalized."""
    scaled = log_prob(values) / T
    return scaled - (scaled.logsumexp(0) + torch.tensor(measure).log())


def test_classes_and_binary_values_are_powers():
    classes = pn.likelihoods.Categorical()
    logits = 3 * torch.randn(4, 6, dtype=torch.float64)
    y = torch.arange(6)[:, None].expand(6, 4)
    expected = log_power(dist.Categorical(logits=logits).log_prob, y)
    actual = torch.stack([classes.tempered(T).log_prob(logits, each) for each in y])
    torch.testing.assert_close(actual, expected)
    binary = pn.likelihoods.Bernoulli()
    y = torch.tensor([[0.0], [1.0]]).double().expand(2, 4)
    expected = log_power(dist.Bernoulli(logits=logits[:, 0]).log_prob, y)
    actual = torch.stack([binary.tempered(T).log_prob(logits[:, 0], each) for each in y])
    torch.testing.assert_close(actual, expected)
    ordinal = pn.likelihoods.Ordinal(3).double()
    y = torch.arange(3)[:, None].expand(3, 4)
    expected = log_power(lambda y: torch.stack([ordinal.log_prob(logits[:, 0], e) for e in y]), y)
    actual = torch.stack([ordinal.tempered(T).log_prob(logits[:, 0], each) for each in y])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("likelihood", "wider"),
    [
        (pn.likelihoods.Normal(0.3), pn.likelihoods.Normal(0.3 * T)),
        (pn.likelihoods.StudentT(4.0, 0.3), pn.likelihoods.StudentT(4.0, 0.3 * T)),
        (
            pn.likelihoods.Likelihood.of(lambda f: dist.Laplace(f, 0.3)),
            pn.likelihoods.Likelihood.of(lambda f: dist.Laplace(f, 0.3 * T)),
        ),
    ],
)
def test_noise_is_wider(likelihood, wider):
    f, y = torch.randn(2, 5), torch.randn(5)
    y[0] = torch.nan
    actual = likelihood.tempered(T).log_prob(f, y, 1)
    torch.testing.assert_close(actual, wider.log_prob(f, y, 1))
    assert not actual[:, 0].any()


def test_correlated_noise_and_what_is_missing_of_it():
    likelihood = pn.likelihoods.MultivariateNormal(torch.tensor([0.5, 1.0]), torch.ones(2, 1))
    f, y = torch.randn(3, 2), torch.randn(3, 2)
    covariance = likelihood.covariance * T**2
    expected = dist.MultivariateNormal(f, covariance).log_prob(y)
    torch.testing.assert_close(likelihood.tempered(T).log_prob(f, y), expected)
    y[:, 1] = torch.nan
    expected = dist.Normal(f[:, 0], covariance[0, 0].sqrt()).log_prob(y[:, 0])
    torch.testing.assert_close(likelihood.tempered(T).log_prob(f, y), expected)


@pytest.mark.parametrize("low_rank", [True, False])
def test_vectors_of_a_likelihood_of_ones_own(low_rank):
    factor, diagonal = torch.tensor([[1.0], [0.5]]), torch.tensor([0.3, 0.2])
    covariance = factor @ factor.T + diagonal.diag()

    def given(f):
        if low_rank:
            return dist.LowRankMultivariateNormal(f, factor, diagonal)
        return dist.MultivariateNormal(f, covariance)

    likelihood = pn.likelihoods.Likelihood.of(given)
    f, y = torch.randn(4, 2), torch.randn(4, 2)
    expected = dist.MultivariateNormal(f, covariance * T**2).log_prob(y)
    torch.testing.assert_close(likelihood.tempered(T).log_prob(f, y), expected)


def test_temperatures_multiply_and_one_changes_nothing():
    likelihood = pn.likelihoods.Categorical()
    f, y = torch.randn(4, 6), torch.arange(4)
    torch.testing.assert_close(likelihood.tempered(1.0).log_prob(f, y), likelihood.log_prob(f, y))
    twice = likelihood.tempered(2.0).tempered(1.25)
    torch.testing.assert_close(twice.log_prob(f, y), likelihood.tempered(2.5).log_prob(f, y))
    assert "temperature=2.5" in repr(twice)


def test_missing_classes_and_weights_are_the_other_likelihoods():
    weight = torch.tensor([1.0, 2.0, 3.0])
    likelihood = pn.likelihoods.Categorical(ignore_index=-1, weight=weight).tempered(T)
    y = torch.tensor([0, -1, 2])
    f = torch.randn(3, 3)
    assert likelihood.log_prob(f, y)[1] == 0
    assert likelihood.weights(y).tolist() == [1.0, 1.0, 3.0]
    prediction = likelihood.predict(f[None])
    expected = pn.likelihoods.Categorical().predict(f[None] / T).entropy
    torch.testing.assert_close(prediction.entropy, expected)
    ordered = pn.likelihoods.Ordinal(4).tempered(T)
    assert ordered.predict(torch.randn(2, 5)).quantiles(0.5).shape == (5,)


def test_dense_outputs():
    likelihood = pn.likelihoods.Categorical()
    f, y = torch.randn(2, 3, 4, 5), torch.randint(4, (3, 5))
    expected = likelihood.log_prob(f / T, y, 1)
    torch.testing.assert_close(likelihood.tempered(T).log_prob(f, y, 1), expected)


def test_a_model_predicts_exports_and_is_saved_at_its_temperature(tmp_path):
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    network = pn.convert(mlp())
    pn.estimate_population_statistics(network, x)
    plain = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 20)
    model = pn.NormalizationModel(plain.network, plain.likelihood.tempered(T), 20)
    guide = pn.guides.MeanField(model)
    expected = pn.predict(plain, guide, x, 4, seed=0).tempered(T).mean
    torch.testing.assert_close(pn.predict(model, guide, x, 4, seed=0).mean, expected)
    pn.to_arviz(model, guide, (x, y), 4)
    pn.save(tmp_path / "file", model, guide)
    loaded, posterior = pn.load(tmp_path / "file", mlp())
    assert isinstance(loaded.likelihood, Tempered)
    again = pn.predict(loaded, posterior, x, 4, seed=0).mean
    assert torch.equal(again, pn.predict(model, guide, x, 4, seed=0).mean)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), torch.ones(2)])
def test_no_temperature(bad):
    with pytest.raises(OptionError, match="positive finite number"):
        pn.likelihoods.Normal().tempered(bad)


def test_counts_have_none():
    with pytest.raises(OptionError, match="Poisson has none; classes"):
        pn.likelihoods.Poisson().tempered(T).distribution(torch.randn(3))
