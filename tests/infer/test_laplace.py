"""The mode and the curvature against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.guides import MAP, MeanField, Point
from pyronorm.infer.jacobian import latent_jacobian
from pyronorm.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Normal,
    Ordinal,
    Poisson,
    StudentT,
)
from pyronorm.priors import HierarchicalBatchNoise, Standard
from pyronorm.testing.posterior import small_inputs, small_model
from tests.guides.linear import linear_model

DOUBLE = torch.float64
N = 50


def problem():
    return small_model(dtype=DOUBLE), (small_inputs(N).double(), torch.arange(N) % 3)


def outputs(model, x, z):
    shift, log_scale = z.chunk(2)
    return model.network(x, shift, log_scale.exp())


def log_joint(model, data, z):
    shift, log_scale = z.chunk(2)
    log_p = model.likelihood.distribution(outputs(model, data[0], z)).log_prob(data[1]).sum()
    return log_p + model.prior.log_prob(model.space, shift, log_scale.exp(), {}) + log_scale.sum()


def test_the_jacobian_is_that_of_forward_differentiation() -> None:
    model, (x, _) = problem()
    model.eval()
    z = 0.2 * torch.randn(18, dtype=DOUBLE)
    output, found = latent_jacobian(model.network, x, z, "here")
    torch.testing.assert_close(output, outputs(model, x, z).detach())
    explicit = torch.autograd.functional.jacobian(lambda v: outputs(model, x, v), z)
    torch.testing.assert_close(found, explicit)
    direction = torch.randn(18, dtype=DOUBLE)
    along = torch.func.jvp(lambda v: outputs(model, x, v), (z,), (direction,))[1]
    torch.testing.assert_close(found @ direction, along)


def test_the_mode_is_where_the_posterior_is_flat() -> None:
    model, data = problem()
    guide = pn.find_mode(model, data, batch_size=13)
    model.eval()
    z = guide.loc.requires_grad_()
    value = log_joint(model, data, z)
    (slope,) = torch.autograd.grad(value, z)
    assert slope.abs().max() < 1e-5
    assert value > log_joint(model, data, torch.zeros_like(z))
    again = pn.find_mode(model, data, start=guide, max_steps=5)
    torch.testing.assert_close(again.loc, guide.loc, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_trained_map_goes_to_the_same_mode() -> None:
    model, data = problem()
    guide = MAP(model)
    pn.fit(
        model,
        guide,
        data,
        epochs=150,
        batch_size=N,
        lr=0.1,
        train_network=False,
        progress=False,
    )
    torch.testing.assert_close(
        guide.loc.double(), pn.find_mode(model, data).loc.double(), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("batch_size", [7, 50])
def test_the_whole_matrix_by_brute_force(batch_size) -> None:
    model, data = problem()
    z = pn.find_mode(model, data).loc
    curvature = pn.collect_curvature(model, data, batch_size=batch_size)
    model.eval()
    jacobian = torch.autograd.functional.jacobian(lambda v: outputs(model, data[0], v), z)
    p = outputs(model, data[0], z).softmax(-1).detach()
    bend = p.diag_embed() - p[:, :, None] * p[:, None]
    expected = torch.einsum("nkd,nkl,nle->de", jacobian, bend, jacobian)
    torch.testing.assert_close(
        curvature.factor.T @ curvature.factor, expected, rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(curvature.diagonal, expected.diagonal(), rtol=1e-6, atol=1e-8)
    assert curvature.log_likelihood == pytest.approx(
        model.likelihood.log_prob(outputs(model, data[0], z), data[1]).sum().item()
    )


@pytest.mark.parametrize(
    "likelihood",
    [Categorical(), Bernoulli(), Poisson(), Normal(0.7)],
    ids=lambda v: type(v).__name__,
)
def test_it_is_the_hessian_where_the_network_is_linear(likelihood) -> None:
    """Of likelihoods whose output is the natural parameter."""
    model = linear_model(likelihood, N, Standard(1.0, 1.0))
    x = 0.5 * torch.randn(N, 3, 6, dtype=DOUBLE)
    y = torch.arange(N) % 3 if isinstance(likelihood, Categorical) else torch.ones(N, 3).double()
    curvature = pn.collect_curvature(model, (x, y))
    model.eval()

    def loss(z):
        return -model.likelihood.distribution(outputs(model, x, z)).log_prob(y).sum()

    hessian = torch.autograd.functional.hessian(loss, curvature.mode)
    torch.testing.assert_close(curvature.factor.T @ curvature.factor, hessian, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rank", [0, 5, 18])
def test_a_lower_rank_is_the_leading_part(rank) -> None:
    model, data = problem()
    whole = pn.collect_curvature(model, data)
    found = pn.collect_curvature(model, data, rank=rank, batch_size=6)
    assert found.factor.shape == (rank, 18)
    expected = whole.truncated(rank)
    torch.testing.assert_close(found.diagonal, expected.diagonal)
    # the running decomposition drops the least rows; here it has room for most
    torch.testing.assert_close(
        found.factor.T @ found.factor, expected.factor.T @ expected.factor, rtol=1e-2, atol=1e-3
    )


def test_weights_count_and_missing_examples_do_not() -> None:
    x = torch.randn(N, 2, 6, dtype=DOUBLE)
    y = torch.randn(N, 2, dtype=DOUBLE)
    model = linear_model(Normal(0.5), N, Standard())
    weight = torch.arange(N, dtype=DOUBLE) % 3
    found = pn.collect_curvature(model, (x, y, weight), Point(model))
    rows = x * weight.sqrt()[:, None, None] / 0.5
    expected = torch.einsum("nkd,nke->de", rows, rows)
    torch.testing.assert_close(found.factor.T @ found.factor, expected)
    y[weight == 0] = torch.nan
    missing = pn.collect_curvature(model, (x, y, weight), Point(model))
    torch.testing.assert_close(missing.diagonal, found.diagonal)
    assert missing.log_likelihood == pytest.approx(found.log_likelihood)
    y[1, 0] = torch.nan
    with pytest.raises(DataError, match="an example has only some of its values"):
        pn.collect_curvature(model, (x, y, weight), Point(model))


def test_weights_of_classes_count() -> None:
    x, y = torch.randn(N, 3, 6, dtype=DOUBLE), torch.arange(N) % 3
    weights = torch.tensor([1.0, 2.0, 0.5]).double()
    found, expected = (
        pn.collect_curvature(model, data, Point(model))
        for model, data in (
            (linear_model(Categorical(weight=weights), N, Standard()), (x, y)),
            (linear_model(Categorical(), N, Standard()), (x, y, weights[y])),
        )
    )
    torch.testing.assert_close(found.diagonal, expected.diagonal)


@pytest.mark.parametrize(
    ("likelihood", "out"),
    [(HeteroscedasticNormal(), 2), (Ordinal(3), None)],
    ids=lambda v: type(v).__name__,
)
def test_every_likelihood_with_a_divergence_has_one(likelihood, out) -> None:
    model = linear_model(likelihood, N, Standard())
    x = 0.3 * torch.randn(N, out or 1, 6, dtype=DOUBLE)
    if out is None:
        model.network.output = lambda output: output[:, 0]
        y = torch.arange(N) % 3
    else:
        y = torch.randn(N, dtype=DOUBLE)
    curvature = pn.collect_curvature(model, (x, y))
    assert curvature.diagonal.min() > 0


def test_refusals() -> None:
    model, data = problem()
    with pytest.raises(OptionError, match=r"num_data=50 examples, got 40"):
        pn.collect_curvature(model, (data[0][:40], data[1][:40]), Point(model))
    with pytest.raises(OptionError, match=r"find_mode: the model is made for num_data=50"):
        pn.find_mode(model, (data[0][:40], data[1][:40]))
    with pytest.raises(OptionError, match="expected a point.* got MeanField, whose draws differ"):
        pn.collect_curvature(model, data, MeanField(model))
    with pytest.raises(OptionError, match="rank must be at most 18"):
        pn.collect_curvature(model, data, rank=19)
    with pytest.raises(DataError, match="needs pairs"):
        pn.collect_curvature(model, data[0], Point(model))
    with pytest.raises(DataError, match="there is no batch"):
        pn.find_mode(model, [])
    hierarchical = small_model(dtype=DOUBLE, prior=HierarchicalBatchNoise(16.0))
    with pytest.raises(OptionError, match="find_mode: .* has hyperparameters"):
        pn.find_mode(hierarchical, data)
    student = linear_model(StudentT(), N, Standard())
    x = torch.randn(N, 1, 6, dtype=DOUBLE)
    with pytest.raises(OptionError, match="torch knows none of StudentT"):
        pn.collect_curvature(student, (x, x[:, :, 0]), Point(student))
    plain = nn.Sequential(nn.Linear(2, 3))
    model = pn.NormalizationModel(pn.LatentNetwork(plain, plain=True), Categorical(), N)
    with pytest.raises(OptionError, match="plain network"):
        pn.find_mode(model, (torch.randn(N, 2), data[1]))


def test_dense_outputs_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    network[1].num_batches_tracked.fill_(1)
    model = pn.NormalizationModel(pn.convert(network), Categorical(), 8)
    x, y = torch.randn(8, 1, 3, 3), torch.zeros(8, 3, 3, dtype=torch.long)
    with pytest.raises(
        ShapeError, match=r"got \(8, 3, 3, 3\). For dense outputs use a variational"
    ):
        pn.collect_curvature(model, (x, y), Point(model))
