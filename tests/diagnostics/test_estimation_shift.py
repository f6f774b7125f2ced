"""Estimation shift and the gap between modes, against the layers' inputs by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyronorm import NormalizationModel, convert, estimate_population_statistics
from pyronorm.diagnostics import estimation_shift, mode_gap
from pyronorm.errors import ConversionError, DataError, StatisticsError
from pyronorm.likelihoods import Categorical
from pyronorm.normalizers import BatchWhitening, LatentNorm
from tests.nets import SHAPES, conv_net, mlp, train_briefly


def inputs_of_norms(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handles = [
        m.register_forward_pre_hook(lambda m, args: seen.append(args[0].movedim(1, 0).flatten(1)))
        for m in network.modules()
        if isinstance(m, LatentNorm)
    ]
    with torch.no_grad():
        network.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("normalizer", [None, BatchWhitening(2)])
def test_is_the_difference_to_the_inputs_in_evaluation_mode(dims, normalizer):
    network = convert(conv_net(dims), normalizer)
    estimate_population_statistics(network, torch.randn(60, *SHAPES[dims]), batch_size=20)
    x = 1 + 2 * torch.randn(17, *SHAPES[dims])
    found = estimation_shift(network, [x[:6], x[6:]])
    layers = [m for m in network.modules() if isinstance(m, LatentNorm)]
    for name, layer, values in zip(("1", "4"), layers, inputs_of_norms(network, x), strict=True):
        mean, var = values.double().mean(1), values.double().var(1, correction=0)
        own_mean = layer.state("running_mean").double()
        if normalizer is None:
            own_var = layer.state("running_var").double()
        else:
            own_var = torch.cat([c.diag() for c in layer.state("running_cov")]).double()
        n = len(mean)
        assert found.of_mean[name] == pytest.approx(float((own_mean - mean).norm()), rel=1e-4)
        assert found.of_var[name] == pytest.approx(float((own_var - var).norm()), rel=1e-4)
        shift = (own_mean - mean) / (own_var + 1e-5).sqrt()
        assert found.of_mean_normalized[name] == pytest.approx(
            float(shift.norm()) / math.sqrt(n), rel=1e-4
        )
        log_scale = ((own_var + 1e-5) / (var + 1e-5)).log() / 2
        assert found.of_var_normalized[name] == pytest.approx(
            float(log_scale.norm()) / math.sqrt(n), rel=1e-4
        )


def test_is_zero_for_the_data_of_the_estimate_in_one_batch_and_grows_with_depth_otherwise():
    network = convert(train_briefly(mlp(), (5,)))
    x = torch.randn(400, 5)
    estimate_population_statistics(network, x, batch_size=400)
    found = estimation_shift(network, x)
    assert max(*found.of_mean_normalized.values(), *found.of_var_normalized.values()) < 1e-4
    estimate_population_statistics(network, x, batch_size=4)
    found = estimation_shift(network, x)
    assert found.of_var_normalized["1"] < 1e-4  # the first layer sees the same in both modes
    assert found.of_var_normalized["4"] > 0.01


def test_layers_without_population_statistics_are_left_out():
    network = convert(
        nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3), nn.BatchNorm1d(3))
    )
    estimate_population_statistics(network, torch.randn(30, 5))
    found = estimation_shift(network, torch.randn(9, 5))
    assert list(found.of_mean) == ["3"]
    assert bool(found.mean[:4].isnan().all())


def classifier() -> NormalizationModel:
    network = convert(train_briefly(mlp(), (5,)))
    estimate_population_statistics(network, torch.randn(300, 5))
    return NormalizationModel(network, Categorical(), num_data=30)


def test_mode_gap_is_the_difference_of_losses_and_outputs():
    model = classifier()
    x, y = torch.randn(23, 5), torch.randint(3, (23,))
    batches = [(x[:9], y[:9]), (x[9:18], y[9:18]), (x[18:], y[18:])]  # the rest does not count
    found = mode_gap(model, batches)
    network = model.network.network
    with torch.no_grad():
        network.train()
        noisy = torch.cat([network(part) for part, _ in batches[:2]])
        network.eval()
        clean = network(x[:18])
    assert found.batch_size == 9
    assert found.batch_loss == pytest.approx(float(F.cross_entropy(noisy, y[:18])), rel=1e-5)
    assert found.evaluation_loss == pytest.approx(float(F.cross_entropy(clean, y[:18])), rel=1e-5)
    assert found.loss_gap == pytest.approx(found.evaluation_loss - found.batch_loss)
    distance = float((noisy - clean).norm(dim=1).mean()) / math.sqrt(3)
    assert found.output_distance == pytest.approx(distance, rel=1e-4)


def test_mode_gap_falls_with_batch_size():
    model = classifier()
    data = torch.randn(512, 5), torch.randint(3, (512,))
    distances = [mode_gap(model, data, size).output_distance for size in (4, 16, 64)]
    assert distances[0] > 1.5 * distances[1] > 2.25 * distances[2]
    assert mode_gap(model, data, 16) == mode_gap(model, data, 16)


def test_errors():
    model, x = classifier(), torch.randn(9, 5)
    with pytest.raises(DataError, match=r"pairs \(x, y\)"):
        mode_gap(model, x)
    with pytest.raises(DataError, match="no batch"):
        mode_gap(model, [])
    with pytest.raises(DataError, match="no batch"):
        estimation_shift(model, [])
    with pytest.raises(ConversionError, match="no layer of Sequential has population"):
        estimation_shift(convert(mlp(norm=lambda c: nn.GroupNorm(2, c))), x)
    with pytest.raises(StatisticsError, match="no population statistics"):
        estimation_shift(convert(mlp()), x)
