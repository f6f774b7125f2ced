"""Whitened networks: conversion, population statistics, draws, training, and their batch noise."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyronorm import (
    LatentNetwork,
    NormalizationModel,
    collect_bank,
    convert,
    estimate_population_statistics,
    fit,
    guides,
    predict,
    to_arviz,
    trust_statistics,
)
from pyronorm.errors import ConversionError, DataError, OptionError, ShapeError, StatisticsError
from pyronorm.likelihoods import Categorical
from pyronorm.normalizers import Batch, BatchWhitening, GroupWhitening, LatentNorm
from pyronorm.stats import Eigen, Newton
from tests.nets import SHAPES, ResNet, conv_net, mlp, train_briefly

NORMALIZERS = [
    kind(2, solver) for kind in (BatchWhitening, GroupWhitening) for solver in (Newton(5), Eigen())
]


def draw(network, *shape):
    channels = network.space.num_channels
    return torch.randn(*shape, channels) * 0.3, torch.rand(*shape, channels) + 0.5


@pytest.fixture(params=NORMALIZERS, ids=str)
def normalizer(request):
    return request.param


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: conv_net(1), SHAPES[1]),
        (lambda: conv_net(3), SHAPES[3]),
        (ResNet, (3, 9, 8)),
        (lambda: conv_net(2, norm=lambda c: nn.GroupNorm(2, c, eps=1e-3)), SHAPES[2]),
    ],
    ids=["1d", "3d", "residual", "group norms"],
)
def test_conversion_carries_weight_and_bias(normalizer, make, shape):
    original = train_briefly(make(), shape, steps=2)
    network = convert(original, normalizer)
    converted = dict(network.named_modules())
    for name, module in original.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)):
            layer = converted[name]
            assert isinstance(layer, LatentNorm)
            assert type(layer.normalizer) is type(normalizer)
            assert layer.eps == module.eps
            assert torch.equal(layer.weight, module.weight)
            assert torch.equal(layer.bias, module.bias)
    x = torch.randn(11, *shape)
    assert network.train()(x).isfinite().all()


def test_population_statistics_are_missing_until_estimated():
    network = convert(train_briefly(conv_net(2), SHAPES[2], steps=2), BatchWhitening(2))
    latent = LatentNetwork(network).eval()
    x = torch.randn(11, *SHAPES[2])
    with pytest.raises(StatisticsError, match="1 has no population statistics .*2 of 2 batch"):
        latent(x)
    estimate_population_statistics(network, x)
    latent(x)
    with torch.no_grad():
        network[0].weight.mul_(1.01)
    with pytest.raises(StatisticsError, match="stale"):
        latent(x)


def test_what_does_not_fit_is_refused_by_layer():
    with pytest.raises(
        ConversionError, match="layer '1': .*channels_per_group=6 does not divide 4"
    ):
        convert(conv_net(2), BatchWhitening(6))
    with pytest.raises(ConversionError, match="layer '1': .*num_groups=4 does not divide 6"):
        convert(mlp(), GroupWhitening(4))
    without_eps = conv_net(2, norm=lambda c: nn.BatchNorm2d(c, eps=0.0))
    with pytest.raises(ConversionError, match=r"layer '1': .*eps must be positive, got 0\.0"):
        convert(without_eps, BatchWhitening(2))
    network = convert(mlp(), GroupWhitening(2))
    with pytest.raises(ShapeError, match="4: the covariance of 2 groups .* got 2"):
        network(torch.randn(7, 5))  # layer 1 has three channels in a group, layer 4 has two


@pytest.mark.parametrize("solver", [Newton(5), Eigen()], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_estimated_population_is_mean_and_covariance_of_all_data(dims, solver):
    network = convert(conv_net(dims), BatchWhitening(2, solver))
    x = torch.randn(23, *SHAPES[dims]) * 2 + 1
    estimate_population_statistics(network, x, batch_size=5)  # the last batch has 3
    batches = x.split(5)
    network.train()
    first = [network[0](b) for b in batches]
    third = [network[:4](b) for b in batches]  # each batch whitened by itself
    for layer, seen in ((network[1], first), (network[4], third)):
        rows = torch.cat(seen).detach().movedim(1, 0).flatten(1)
        cov = torch.stack([torch.cov(group, correction=0) for group in rows.split(2)])
        torch.testing.assert_close(layer.running_mean, rows.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_cov, cov, rtol=1e-4, atol=1e-5)
        assert layer.num_batches_tracked == 5


def test_evaluation_mode_then_whitens_the_training_data():
    layer = LatentNorm(BatchWhitening(3, Eigen()), 6, affine=False)
    x = torch.randn(50, 6, 7) * 4 - 2
    estimate_population_statistics(layer, x, batch_size=9)
    cov = torch.cov(layer.eval()(x).movedim(1, 0).flatten(1), correction=0)
    for group in (cov[:3, :3], cov[3:, 3:]):
        torch.testing.assert_close(group, torch.eye(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(layer(x[:1]), layer(x)[:1])  # nothing of the batch


def test_data_that_are_not_finite_are_named():
    network = convert(conv_net(2), BatchWhitening(2))
    x = torch.randn(23, *SHAPES[2])
    x[3, 1, 2, 2] = torch.inf
    with pytest.raises(DataError, match="batch 0 has inputs that are not finite"):
        estimate_population_statistics(network, x)
    x[3, 1, 2, 2] = 1e38  # finite, but not its square
    with pytest.raises(StatisticsError, match="1: its inputs over the data are not finite"):
        estimate_population_statistics(network, x)
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize("training", [True, False])
def test_many_draws_equal_a_loop(normalizer, training):
    network = convert(conv_net(2), normalizer)
    x = torch.randn(7, *SHAPES[2])
    estimate_population_statistics(network, x)
    latent = LatentNetwork(network, samples_per_call=4).train(training)
    for examples in (1, 7):
        shift, scale = draw(latent, 9, examples)
        loop = torch.stack([latent(x, *pair) for pair in zip(shift, scale, strict=True)])
        torch.testing.assert_close(latent(x, shift, scale), loop, rtol=1e-4, atol=1e-4)


def test_per_example_latents_equal_each_example_with_its_own(normalizer):
    network = convert(conv_net(2), normalizer)
    x = torch.randn(7, *SHAPES[2])
    estimate_population_statistics(network, x)
    latent = LatentNetwork(network).eval()
    shift, scale = draw(latent, 7)
    each = latent(x, shift, scale)
    loop = torch.cat([latent(x[i : i + 1], shift[i], scale[i]) for i in range(7)])
    torch.testing.assert_close(each, loop, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_trains_a_convolutional_network(normalizer, elbo):
    x = torch.randn(24, *SHAPES[2])
    y = (x[:, 0].mean((1, 2)) > 0).long() + (x[:, 1, :2].mean((1, 2)) > 0).long()
    model = NormalizationModel(convert(conv_net(2), normalizer), Categorical(), len(x))
    guide = guides.MeanField(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo())
    start = sum(svi.evaluate_loss(x, y) for _ in range(10)) / 10
    weights = [p.clone() for p in model.parameters()]
    for _ in range(60):
        svi.step(x, y)
    end = sum(svi.evaluate_loss(x, y) for _ in range(10)) / 10
    assert end < 0.8 * start
    assert all(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_fit_estimates_the_population_and_predicts(normalizer):
    x, y = torch.randn(24, *SHAPES[2]), torch.randint(3, (24,))
    model = NormalizationModel(convert(conv_net(2), normalizer), Categorical(), len(x))
    guide = guides.MeanField(model)
    history = fit(model, guide, (x, y), epochs=2, batch_size=8, progress=False)
    assert len(history.losses) == 2
    prediction = predict(model, guide, x, num_samples=5)
    assert prediction.mean.shape == (24, 3)


def test_several_draws_per_batch():
    x, y = torch.randn(12, *SHAPES[2]), torch.randint(3, (12,))
    model = NormalizationModel(convert(conv_net(2), BatchWhitening(2)), Categorical(), 60, draws=4)
    with pytest.raises(OptionError, match="draws=4, but 1 takes statistics over the batch"):
        Trace_ELBO().differentiable_loss(model, guides.MeanField(model), x, y)
    model = NormalizationModel(convert(conv_net(2), GroupWhitening(2)), Categorical(), 60, draws=4)
    Trace_ELBO().differentiable_loss(model, guides.MeanField(model), x, y).backward()


def test_a_bank_of_batch_whitening_is_refused_by_name():
    network = convert(conv_net(2), BatchWhitening(2))
    x = torch.randn(12, *SHAPES[2])
    estimate_population_statistics(network, x)
    match = r"1 \(BatchWhitening\) has batch statistics .* not a shift and a scale"
    with pytest.raises(ConversionError, match=match):
        collect_bank(network, x)
    mixed = convert(train_briefly(conv_net(2), SHAPES[2], steps=2), Batch(), only="1")
    mixed = convert(mixed, BatchWhitening(2), only="4")
    trust_statistics(mixed)
    with pytest.raises(ConversionError, match=r"4 \(BatchWhitening\) has batch statistics"):
        collect_bank(mixed, x)


def test_group_whitening_has_no_batch_noise():
    with pytest.raises(ConversionError, match="no batch normalizer, so no batch noise"):
        collect_bank(convert(conv_net(2), GroupWhitening(2)), torch.randn(12, *SHAPES[2]))


def test_reference_statistics_are_unknown(normalizer):
    network = convert(conv_net(2), normalizer)
    x, y = torch.randn(12, *SHAPES[2]), torch.randint(3, (12,))
    estimate_population_statistics(network, x)
    model = NormalizationModel(network, Categorical(), 12)
    mean, std = model.network.reference_statistics()
    assert mean.isnan().all()
    assert std.isnan().all()
    idata = to_arviz(model, guides.MeanField(model), (x, y), 3)
    assert set(idata["posterior"].data_vars) == {"shift", "scale"}


def noise_of_batches(normalizer, batch_size: int, probes: torch.Tensor, batches: int):
    """Outputs for some examples, in many random batches with others."""
    layer = LatentNorm(normalizer, 4, affine=False)
    mix = torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0.5], [0.5, 0, 0, 1]])
    rest = torch.randn(batches, batch_size - len(probes), 4) @ mix
    return torch.stack([layer(torch.cat([probes, r]))[: len(probes)] for r in rest])


@pytest.mark.parametrize("whitening", [BatchWhitening(4), BatchWhitening(4, Eigen()), Batch()])
def test_stochasticity_falls_with_the_batch_size(whitening):
    """One example's output varies with the batch it is in, as 1/n: measured as for Batch."""
    probes = torch.randn(1, 4)
    small, large = (
        noise_of_batches(whitening, n, probes, batches=400).var(0).sum() for n in (32, 128)
    )
    # Each variance (of 4 outputs, 400 batches) has a relative error of at most sqrt(2/400) = 7 %, the
    # ratio 10 %: 2.6 and 6 are four standard errors from 4 (false alarm 6e-5 each); smaller batches
    # have somewhat more than 1/n.
    assert 2.6 < small / large < 6.5


def test_noise_of_whitening_is_not_a_shift_and_a_scale():
    """Why there is no bank of it: in each batch, outputs are no affine map of those of another."""
    probes = torch.randn(12, 4)
    rest = {}
    for normalizer in (Batch(), BatchWhitening(4, Eigen())):
        first, *others = noise_of_batches(normalizer, 40, probes, batches=9)
        residuals = []
        for channel in range(4):
            design = torch.stack([first[:, channel], torch.ones(12)], 1)
            target = torch.stack([other[:, channel] for other in others], 1)
            solution = torch.linalg.lstsq(design, target).solution
            residuals.append((target - design @ solution).square().mean().sqrt())
        rest[type(normalizer)] = float(torch.stack(residuals).mean())
    assert rest[Batch] < 1e-5
    assert rest[BatchWhitening] > 0.03
