"""The jackknife against exact leave-one-out: closed form, brute force, training again."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyronorm as pn
from pyronorm.baselines import fit_jackknife
from pyronorm.errors import ConversionError, DataError, OptionError, ShapeError
from pyronorm.likelihoods import Intervals
from pyronorm.networks import MLP

N = 19


def plain(network: nn.Module, num_data: int = N) -> pn.NormalizationModel:
    latent = pn.LatentNetwork(network, plain=True)
    return pn.NormalizationModel(latent, pn.likelihoods.Normal(0.5), num_data=num_data)


def ridge(x: Tensor, y: Tensor, damping: float) -> Tensor:
    """Weights and bias, (feature + 1, 1); the bias is damped as well."""
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    return torch.linalg.solve(x.T @ x + damping * torch.eye(x.shape[1]).to(x), x.T @ y)


def linear_model(x: Tensor, y: Tensor, damping: float) -> pn.NormalizationModel:
    theta = ridge(x, y, damping)
    network = MLP(x.shape[1], 1, ()).to(x.dtype)
    with torch.no_grad():
        network.fc.weight.copy_(theta[:-1].T)
        network.fc.bias.copy_(theta[-1])
    return plain(network, len(x))


@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_ridge_regression_is_exact(damping: float) -> None:
    x, new = torch.randn(N, 4).double(), torch.randn(6, 4).double()
    y = x[:, :1] - x[:, 1:2] + 0.3 * torch.randn(N, 1).double()
    jackknife = fit_jackknife(linear_model(x, y, damping), (x, y), damping=damping, batch_size=7)
    left_out, residuals = [], []
    for i in range(N):
        keep = torch.arange(N) != i
        theta = ridge(x[keep], y[keep], damping)
        residuals.append(y[i] - x[i] @ theta[:-1] - theta[-1])
        left_out.append(new @ theta[:-1] + theta[-1])
    residual = torch.cat(residuals)
    torch.testing.assert_close(jackknife.residuals, residual)
    found = jackknife.intervals(new, 0.8, batch_size=4)
    ends = torch.stack(left_out)
    # ceil(.8 * 20) = 16th smallest, floor(.2 * 20) = 4th smallest
    upper = (ends + residual.abs().view(-1, 1, 1)).sort(0).values[15]
    lower = (ends - residual.abs().view(-1, 1, 1)).sort(0).values[3]
    torch.testing.assert_close(found.upper, upper)
    torch.testing.assert_close(found.lower, lower)
    torch.testing.assert_close(found.width, upper - lower)
    assert found.mean.shape == (6, 1)


def test_coverage_of_linear_regression() -> None:
    hits = []
    for _ in range(60):
        x = torch.randn(40, 5)
        y = x.sum(1, keepdim=True) + torch.randn(40, 1)
        model = linear_model(x[:30], y[:30], 0.5)
        jackknife = fit_jackknife(model, (x[:30], y[:30]), damping=0.5)
        hits.append(jackknife.intervals(x[30:], 0.9).coverage(y[30:]))
    coverage = torch.tensor(hits)
    error = float(coverage.std()) / 60**0.5
    # The guarantee is 0.8; about 0.9 is usual. Four standard errors.
    assert 0.86 - 4 * error < float(coverage.mean()) < 0.96
    assert float(coverage.mean()) > 0.8


def trained(x: Tensor, y: Tensor, start: nn.Module, damping: float) -> nn.Module:
    """The minimum of the damped least squares nearest to the start."""
    network = copy.deepcopy(start)
    parameters = list(network.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (network(x) - y).square().sum() / 2
        loss = loss + damping * sum(p.square().sum() for p in parameters) / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return network


def smooth_network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def test_networks_trained_again_without_the_example() -> None:
    x = torch.randn(N, 2).double()
    y = (2 * x[:, :1]).sin() + 0.2 * torch.randn(N, 1).double()
    network = trained(x, y, smooth_network(), 0.5)
    model = plain(network)
    jackknife = fit_jackknife(model, (x, y), damping=0.5)
    exact = []
    for i in range(N):
        keep = torch.arange(N) != i
        again = trained(x[keep], y[keep], network, 0.5)
        exact.append((y[i] - again(x[i : i + 1])).squeeze())
    residual = torch.stack(exact).detach()
    plain_residual = (y - network(x)).squeeze(1).detach()
    error = (jackknife.residuals - residual).square().mean().sqrt()
    # Much nearer to the truth than the residuals of training are.
    assert error < 0.4 * (plain_residual - residual).square().mean().sqrt()


def test_the_network_is_evaluated_with_the_weights_left_out() -> None:
    x, new = torch.randn(N, 2).double(), 2 * torch.randn(5, 2).double()
    y = (2 * x[:, :1]).sin() + 0.2 * torch.randn(N, 1).double()
    network = trained(x, y, smooth_network(), 0.1)
    jackknife = fit_jackknife(plain(network), (x, y), damping=0.1)
    left_out, residuals = [], []
    for i in range(N):
        again = copy.deepcopy(network)
        start = torch.nn.utils.parameters_to_vector(again.parameters())
        step = jackknife.steps[:, i]
        torch.nn.utils.vector_to_parameters(start + step, again.parameters())
        left_out.append(again(new).detach())
        residuals.append((y[i] - again(x[i : i + 1])).detach().squeeze())
    residual = torch.stack(residuals)
    torch.testing.assert_close(jackknife.residuals, residual)
    ends = torch.stack(left_out)
    found = jackknife.intervals(new, 0.8, batch_size=3)
    upper = (ends + residual.abs().view(-1, 1, 1)).sort(0).values[15]
    torch.testing.assert_close(found.upper, upper)


def test_intervals_are_wider_away_from_the_data() -> None:
    x = torch.randn(N, 1).double()
    y = x + torch.randn(N, 1).double()
    jackknife = fit_jackknife(linear_model(x, y, 0.1), (x, y), damping=0.1)
    near, far = jackknife.intervals(torch.tensor([[0.0], [200.0]]).double()).width
    assert far > 2 * near


def test_analytic_and_weight_normalization_have_gradients_too() -> None:
    x, y = torch.randn(N, 3), torch.randn(N, 1)
    for normalizer in (pn.normalizers.Weight(), pn.normalizers.Analytic()):
        network = MLP(3, 1, (4,)).eval()
        network(x)
        converted = pn.convert(network, normalizer, example_input=x)
        model = pn.NormalizationModel(converted, pn.likelihoods.Normal(), num_data=N)
        jackknife = fit_jackknife(model, (x, y), batch_size=8)
        first = torch.autograd.grad(model.network(x[:1]).squeeze(), list(converted.parameters()))
        flat = torch.cat([g.flatten() for g in first]).double()
        # H times the step of an example is along its gradient; the gradient of x[0] gives h.
        gradients = []
        for i in range(N):
            output = model.network(x[i : i + 1]).squeeze()
            parts = torch.autograd.grad(output, list(converted.parameters()))
            gradients.append(torch.cat([g.flatten() for g in parts]).double())
        stacked = torch.stack(gradients)
        hessian = stacked.T @ stacked + torch.eye(len(flat)).double()
        solved = torch.linalg.solve(hessian, flat)
        leverage = flat @ solved
        output = model.network(x[:1]).detach().double().squeeze()
        expected = -solved * (y[0, 0].double() - output) / (1 - leverage)
        torch.testing.assert_close(jackknife.steps[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_refusals() -> None:
    x, y = torch.randn(N, 3), torch.randn(N, 1)
    model = plain(MLP(3, 1, (4,), norm=None))
    with pytest.raises(OptionError, match="damping must be positive and finite, got 0"):
        fit_jackknife(model, (x, y), damping=0.0)
    with pytest.raises(DataError, match="needs pairs"):
        fit_jackknife(model, x)
    with pytest.raises(ShapeError):
        fit_jackknife(model, (x, y[:, 0]))
    with pytest.raises(ShapeError, match=r"one target per example.* \(19, 2\)"):
        fit_jackknife(plain(MLP(3, 2, (4,), norm=None)), (x, y))
    with pytest.raises(ConversionError, match="10649 trainable parameters"):
        fit_jackknife(plain(MLP(3, 1, (10, 884), norm=None)), (x, y))
    batch = pn.NormalizationModel(pn.convert(MLP(3, 1, (4,))), pn.likelihoods.Normal(), num_data=N)
    with pytest.raises(ConversionError, match="has batch statistics"):
        fit_jackknife(batch, (x, y))
    classes = pn.NormalizationModel(model.network, pn.likelihoods.Categorical(), num_data=N)
    with pytest.raises(
        OptionError, match="needs a real target with Gaussian noise.* got Categorical"
    ):
        fit_jackknife(classes, (x, y))
    jackknife = fit_jackknife(model, (x, y))
    with pytest.raises(OptionError, match=r"between 0 and 1, got 1\.0"):
        jackknife.intervals(x, 1.0)
    with pytest.raises(OptionError, match="needs at least 99 training examples, got 19"):
        jackknife.intervals(x, 0.99)
    jackknife.intervals(x, 0.95)  # 19 are just enough
    with pytest.raises(DataError, match="no batch"):
        jackknife.intervals([])


def test_coverage_of_intervals() -> None:
    zeros = torch.zeros(4, 1)
    intervals = Intervals(zeros, zeros - 1, zeros + 1)
    assert intervals.coverage(torch.tensor([[-1.0], [0.5], [1.0], [1.5]])) == 0.75
    with pytest.raises(ShapeError, match=r"shape \(4, 1\), got \(4,\)"):
        intervals.coverage(torch.zeros(4))


def test_examples_without_a_target_are_left_out() -> None:
    x, y = torch.randn(N, 3), torch.randn(N, 1)
    y[4] = y[11] = torch.nan
    model = plain(MLP(3, 1, (4,), norm=None))
    kept = ~y.isnan()[:, 0]
    found, expected = fit_jackknife(model, (x, y)), fit_jackknife(model, (x[kept], y[kept]))
    torch.testing.assert_close(found.residuals, expected.residuals)
    torch.testing.assert_close(found.steps, expected.steps)


def test_any_gaussian_noise_of_one_width_will_do() -> None:
    x, y = torch.randn(N, 3), torch.randn(N, 1)
    network = plain(MLP(3, 1, (4,), norm=None)).network
    own = pn.likelihoods.Likelihood.of(lambda f: pyro.distributions.Normal(f, 0.3))
    wider = pn.likelihoods.Likelihood.of(lambda f: pyro.distributions.Normal(f, f.exp()))
    found = fit_jackknife(pn.NormalizationModel(network, own, num_data=N), (x, y))
    same = fit_jackknife(pn.NormalizationModel(network, pn.likelihoods.Normal(), N), (x, y))
    torch.testing.assert_close(found.residuals, same.residuals)
    with pytest.raises(OptionError, match="Gaussian noise of one width"):
        fit_jackknife(pn.NormalizationModel(network, wider, num_data=N), (x, y))
