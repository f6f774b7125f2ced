"""Oracles: scipy's Gaussian density, integration and Monte Carlo over the mixture."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import trapezoid
from torch import nn

from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods import Normal

BATCH = 5
GAUSS = 0.5 * math.log(2 * math.pi * math.e)
PER_OUTPUT = torch.tensor([0.3, 1.1, 4.0])
# std, out
CASES = {
    "scalar": (0.7, ()),
    "targets": (0.7, (3,)),
    "per target": (PER_OUTPUT, (3,)),
    "pixels": (2.5, (2, 4, 3)),
    "per channel": (torch.tensor([0.5, 2.0])[:, None, None], (2, 4, 3)),
    "one for all": (torch.tensor([0.6]), (3,)),
}
cases = pytest.mark.parametrize(("std", "out"), CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
either = pytest.mark.parametrize("learned", [False, True])


@cases
@either
@dtypes
@pytest.mark.parametrize("samples", [(), (2,), (6, 2)], ids=str)
def test_log_prob_is_gaussian_per_example(std, out, learned, dtype, samples):
    likelihood = Normal(std, learned=learned).to(dtype)
    output, y = (
        torch.randn(*samples, BATCH, *out, dtype=dtype),
        torch.randn(BATCH, *out, dtype=dtype),
    )
    log_prob = likelihood.distribution(output, len(samples)).log_prob(y)
    expected = scipy.stats.norm(output, np.asarray(std)).logpdf(y).reshape(*samples, BATCH, -1)
    expected = torch.as_tensor(expected.sum(-1), dtype=dtype)
    torch.testing.assert_close(log_prob, expected, rtol=1e-5, atol=1e-5)
    assert log_prob.dtype == dtype


@pytest.mark.parametrize("samples", [(), (2,)])
def test_expected_is_the_output(samples):
    output = torch.randn(*samples, BATCH, 3)
    assert torch.equal(Normal(0.4).expected(output, len(samples)), output)


@either
def test_noise_is_a_parameter_only_if_learned(learned):
    likelihood = Normal(PER_OUTPUT, learned=learned)
    assert [n for n, _ in likelihood.named_parameters()] == ["log_std"] * learned
    assert isinstance(likelihood.log_std, nn.Parameter) == learned
    torch.testing.assert_close(likelihood.state_dict()["log_std"], PER_OUTPUT.log())
    torch.testing.assert_close(likelihood.std.detach(), PER_OUTPUT)


def test_noise_is_a_copy():
    std = torch.tensor([0.5, 2.0], requires_grad=True)
    likelihood = Normal(std)
    assert not likelihood.std.requires_grad
    with torch.no_grad():
        std += 1
    torch.testing.assert_close(likelihood.std, torch.tensor([0.5, 2.0]))


def test_gradient_of_learned_noise():
    """d log p / d log σ = Σ ((y - f)²/σ² - 1), over examples."""
    likelihood = Normal(PER_OUTPUT, learned=True).double()
    f, y = torch.randn(2, BATCH, 3, dtype=torch.float64)
    likelihood.distribution(f).log_prob(y).sum().backward()
    expected = ((y - f).square() / PER_OUTPUT.double().square() - 1).sum(0)
    torch.testing.assert_close(likelihood.log_std.grad, expected, rtol=1e-5, atol=1e-5)


def test_learned_noise_reaches_the_residual_spread():
    likelihood = Normal(3.0, learned=True)
    residual = 0.4 * torch.randn(500)
    optimizer = torch.optim.LBFGS(
        likelihood.parameters(), max_iter=50, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -likelihood.distribution(torch.zeros(500)).log_prob(residual).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert likelihood.std.item() == pytest.approx(residual.square().mean().sqrt().item(), rel=1e-3)


def mixture_by_integration(means, std):
    """Mean, variance and entropy of one mixture of Gaussians, on a grid."""
    y = np.linspace(means.min() - 12 * std, means.max() + 12 * std, 4001)
    q = scipy.stats.norm(means[:, None], std).pdf(y).mean(0)
    mean = trapezoid(q * y, y)
    entropy = -trapezoid(np.where(q > 0, q * np.log(np.maximum(q, 1e-300)), 0), y)
    return mean, trapezoid(q * (y - mean) ** 2, y), entropy


@cases
@either
@dtypes
def test_summary_matches_integration(std, out, learned, dtype):
    output = torch.randn(6, BATCH, *out, dtype=dtype) * 2
    summary = Normal(std, learned=learned).to(dtype).predict(output)
    noise = torch.as_tensor(std).expand(BATCH, *out).double().flatten().numpy()
    oracle = [
        mixture_by_integration(means, s)
        for means, s in zip(output.double().flatten(1).T.numpy(), noise, strict=True)
    ]
    mean, variance, entropy = torch.tensor(np.array(oracle).T).reshape(3, BATCH, *out)
    information = (entropy.flatten() - GAUSS - torch.as_tensor(noise).log()).reshape(entropy.shape)
    for value, expected, tolerance in (
        (summary.mean, mean, 1e-5),
        (summary.variance, variance, 1e-4),
        (summary.entropy, entropy, 1e-3),
        (summary.mutual_information, information, 1e-3),
    ):
        assert value.shape == (BATCH, *out)
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


def test_single_draw_is_the_noise():
    output = torch.randn(1, BATCH, 3, dtype=torch.float64)
    summary = Normal(PER_OUTPUT).double().predict(output)
    std = PER_OUTPUT.double().expand(BATCH, 3)
    assert torch.equal(summary.mean, output[0])
    torch.testing.assert_close(summary.variance, std**2, rtol=1e-6, atol=0)
    torch.testing.assert_close(summary.entropy, GAUSS + std.log(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(summary.mutual_information, torch.zeros_like(std))


def test_information_of_far_draws_is_the_log_of_their_number():
    output = torch.arange(4.0).mul(100)[:, None].expand(4, BATCH)
    summary = Normal(0.5).predict(output)
    expected = torch.full((BATCH,), math.log(4))
    torch.testing.assert_close(summary.mutual_information, expected)
    torch.testing.assert_close(summary.variance, torch.full((BATCH,), 0.25 + 12_500.0))  # biased


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan, torch.tensor([1.0, 0.0])])
@either
def test_refuses_noise(std, learned):
    with pytest.raises(OptionError, match=r"^Normal: std must be positive and finite"):
        Normal(std, learned=learned)


@pytest.mark.parametrize(("std", "out"), [((3,), ()), ((2, 3), (3,)), ((3,), (3, 1)), ((1,), ())])
def test_noise_wider_than_the_output(std, out):
    match = (
        rf"std of shape \({std[0]}.*\) does not broadcast to outputs of shape \(.*\) per example"
    )
    with pytest.raises(ShapeError, match=match):
        Normal(torch.ones(std)).distribution(torch.zeros(BATCH, *out))


def test_noise_that_cannot_broadcast():
    with pytest.raises(ShapeError, match="does not broadcast"):
        Normal(torch.ones(3)).distribution(torch.zeros(BATCH, 2))


def test_summary_refuses_noise_wider_than_the_output():
    with pytest.raises(ShapeError, match="does not broadcast"):
        Normal(torch.ones(BATCH)).predict(torch.zeros(7, BATCH))


def test_infinity_is_refused_beside_a_missing_value():
    with pytest.raises(DataError, match=r"^Normal: y has values .* or not finite.* 0.5 to 0.5"):
        Normal().check_data(torch.tensor([[0.5, math.nan, math.inf]]), torch.zeros(1, 3))
