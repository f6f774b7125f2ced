"""Laplace's approximation: the exact Hessian, Bayesian linear regression, MacKay's fixed point."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.baselines import fit_laplace
from pyronorm.errors import ConversionError, DataError, OptionError
from pyronorm.likelihoods import Bernoulli, Categorical, Likelihood, Normal, Poisson, StudentT
from pyronorm.networks import MLP
from tests.nets import train_briefly

N = 30


def make(likelihood: Likelihood, outputs: int = 3, norm=None) -> pn.NormalizationModel:
    network = MLP(4, outputs, (5,), norm=norm)
    if norm is None:
        latent = pn.LatentNetwork(network, plain=True)
    else:
        latent = pn.LatentNetwork(pn.convert(train_briefly(network, (4,))))
    return pn.NormalizationModel(latent, likelihood, num_data=N)


def targets(likelihood: Likelihood) -> torch.Tensor:
    if isinstance(likelihood, Categorical):
        return torch.randint(0, 3, (N,))
    if isinstance(likelihood, Bernoulli):
        return torch.randint(0, 2, (N, 3)).float()
    return torch.randn(N, 3)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d], ids=["plain", "batch"])
@pytest.mark.parametrize(
    "likelihood", [Categorical(), Bernoulli(), Normal(torch.tensor([0.5, 1.0, 2.0]))], ids=type
)
def test_covariance_is_the_inverse_hessian(likelihood: Likelihood, norm) -> None:
    model = make(likelihood, norm=norm)
    x, y = torch.randn(N, 4), targets(likelihood)
    posterior = fit_laplace(model, (x, y), prior_precision=0.7, batch_size=7)
    network = model.network.network.eval()
    with torch.no_grad():
        features = network.layers(x).double()
    features = torch.cat([features, torch.ones(N, 1)], 1)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        output = features @ theta.view(3, -1).T
        prior = 0.7 * theta.square().sum() / 2
        return prior - likelihood.distribution(output).log_prob(y).sum()

    hessian = torch.func.hessian(loss)(posterior.mean.flatten())
    covariance = posterior.root @ posterior.root.T
    torch.testing.assert_close(covariance @ hessian, torch.eye(18).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior.mean[:, :-1].float(), network.fc.weight.detach())


def test_prediction_of_bayesian_linear_regression() -> None:
    network = nn.Sequential(nn.Linear(4, 2, bias=False))
    latent = pn.LatentNetwork(network, plain=True)
    model = pn.NormalizationModel(latent, Normal(0.5), num_data=N)
    x, new = torch.randn(N, 4), torch.randn(6, 4)
    posterior = fit_laplace(model, (x, torch.randn(N, 2)), prior_precision=2.0)
    draws = 500
    found = posterior.predict(new, draws, batch_size=4)
    assert found.samples.shape == (draws, 6, 2)
    covariance = torch.linalg.inv(x.T @ x / 0.25 + 2.0 * torch.eye(4))
    var = ((new @ covariance) * new).sum(1, keepdim=True).expand(6, 2)
    mean = network(new).detach()
    # Bands of 5 standard errors, of a mean and of a variance of Gaussian draws.
    assert ((found.mean - mean).abs() < 5 * (var / draws).sqrt()).all()
    torch.testing.assert_close(found.variance - 0.25, var, rtol=5 * (2 / draws) ** 0.5, atol=0)


def test_prior_precision_is_the_fixed_point_of_the_evidence() -> None:
    model = make(Normal(0.3))
    x = torch.randn(N, 4)
    y = x[:, :3] * 2
    pn.fit(model, pn.guides.Point(model), (x, y), epochs=20, lr=0.02, progress=False)
    posterior = fit_laplace(model, (x, y))
    delta = posterior.prior_precision
    precision = torch.linalg.inv(posterior.root @ posterior.root.T)
    curvature = torch.linalg.eigvalsh(precision) - delta
    effective = float((curvature / (curvature + delta)).sum())
    assert delta * float(posterior.mean.square().sum()) == pytest.approx(effective, rel=1e-3)


def test_nothing_is_changed() -> None:
    model = make(Categorical(), norm=nn.BatchNorm1d).train()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    posterior = fit_laplace(
        model, (torch.randn(N, 4), torch.randint(0, 3, (N,))), prior_precision=1.0
    )
    prediction = posterior.predict(torch.randn(5, 4), 3, keep_samples=False)
    assert prediction.samples is None
    torch.testing.assert_close(prediction.mean.sum(1), torch.ones(5))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_refusals() -> None:
    x, y = torch.randn(N, 4), torch.randint(0, 3, (N,))
    model = make(Categorical())
    with pytest.raises(OptionError, match=r"no nn\.Linear named 'head'; .*'fc'"):
        fit_laplace(model, (x, y), layer="head")
    with pytest.raises(ConversionError, match=r"'layers\.0' is not the layer that computes"):
        fit_laplace(model, (x, y), layer="layers.0")
    with pytest.raises(OptionError, match="prior_precision must be positive"):
        fit_laplace(model, (x, y), prior_precision=0.0)
    with pytest.raises(DataError, match="needs pairs"):
        fit_laplace(model, x)
    with pytest.raises(DataError, match="no batch"):
        fit_laplace(model, [])
    posterior = fit_laplace(model, (x, y), prior_precision=1.0)
    with pytest.raises(OptionError, match="num_samples"):
        posterior.predict(x, 0)
    with torch.no_grad():
        model.network.network.fc.bias.add_(1)
    with pytest.raises(OptionError, match="'fc' has been changed since"):
        posterior.predict(x)


def test_large_layers_and_networks_without_linear_layers_are_refused() -> None:
    likelihood = Categorical()
    for network, error, message in (
        (nn.Sequential(nn.Linear(4, 2000)), ConversionError, "'0' has 10000 parameters"),
        (nn.Sequential(nn.Tanh()), OptionError, r"Sequential has no nn\.Linear"),
    ):
        latent = pn.LatentNetwork(network, plain=True)
        model = pn.NormalizationModel(latent, likelihood, num_data=N)
        with pytest.raises(error, match=message):
            fit_laplace(model, (torch.randn(N, 4), torch.randint(0, 3, (N,))))


def test_counts_have_a_curvature_and_students_t_has_none() -> None:
    x = torch.randn(N, 4)
    posterior = fit_laplace(make(Poisson()), (x, torch.ones(N, 3)), prior_precision=1.0)
    prediction = posterior.predict(x, 5)
    assert bool((prediction.interval().width >= 0).all())
    with pytest.raises(OptionError, match="torch knows none of StudentT"):
        fit_laplace(make(StudentT()), (x, torch.ones(N, 3)), prior_precision=1.0)


def test_examples_without_data_are_left_out() -> None:
    model, x, y = make(Normal(0.4)), torch.randn(N, 4), torch.randn(N, 3)
    y[3] = y[8] = torch.nan
    kept = ~y.isnan()[:, 0]
    found, expected = fit_laplace(model, (x, y)), fit_laplace(model, (x[kept], y[kept]))
    torch.testing.assert_close(found.root @ found.root.T, expected.root @ expected.root.T)
    y[5, 1] = torch.nan
    with pytest.raises(DataError, match="an example has only some of its values"):
        fit_laplace(model, (x, y))


def test_weights_of_classes_count_as_those_of_examples() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])
    weighted, plain = make(Categorical(weight=weights)), make(Categorical())
    plain.load_state_dict(weighted.state_dict(), strict=False)
    x, y = torch.randn(N, 4), torch.arange(N) % 3
    found = fit_laplace(weighted, (x, y), prior_precision=0.7)
    expected = fit_laplace(plain, (x, y, weights[y]), prior_precision=0.7)
    torch.testing.assert_close(found.root @ found.root.T, expected.root @ expected.root.T)
