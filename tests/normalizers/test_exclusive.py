from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import ConversionError, ShapeError
from pyronorm.normalizers import Batch, Exclusive, LatentNorm
from tests.nets import mlp
from tests.normalizers.test_batch import SHAPES, pair


def by_brute_force(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Each example by the statistics of the others, one at a time."""
    outputs = []
    for i in range(len(x)):
        others = torch.cat([x[:i], x[i + 1 :]]).transpose(0, 1).flatten(1)
        var, mean = torch.var_mean(others, 1, correction=0)
        y = (x[i].transpose(0, -1) - mean) / (var + layer.eps).sqrt()
        outputs.append((y * layer.weight + layer.bias).transpose(0, -1))
    return torch.stack(outputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_training_is_brute_force_without_the_example(shape, offset):
    layer = pair(shape, Exclusive(eps=1e-3))[1].double().train()
    x = torch.randn(shape).double() * 2 + offset
    torch.testing.assert_close(layer(x), by_brute_force(layer, x), rtol=1e-7, atol=1e-7)


def test_a_large_mean_costs_no_precision():
    x = torch.randn(16, 4) + 3e4
    exact = LatentNorm(Exclusive(), 4).double()(x.double())
    torch.testing.assert_close(LatentNorm(Exclusive(), 4)(x), exact.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_takes_the_population(shape):
    theirs, ours = pair(shape, Exclusive(eps=1e-3))
    x = torch.randn(shape) * 2 + 1
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_population_is_that_of_all_values():
    x = torch.randn(30, 5) * 2 + 1
    ours, batch = pn.convert(mlp(), Exclusive()), pn.convert(mlp(), Batch())
    for network in (ours, batch):
        network.load_state_dict(ours.state_dict())
        pn.estimate_population_statistics(network, x, batch_size=30)
    torch.testing.assert_close(ours[1].running_mean, batch[1].running_mean)
    torch.testing.assert_close(ours[1].running_var, batch[1].running_var)


def test_gradients_of_inputs_and_affine_map():
    layer = LatentNorm(Exclusive(), 3).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(layer, x)


def test_least_batches():
    layer = LatentNorm(Exclusive(), 3)
    with pytest.raises(ShapeError, match="other examples, got 1"):
        layer(torch.randn(2, 3))
    layer(torch.randn(2, 3, 2))
    model = pn.NormalizationModel(pn.convert(mlp(), Exclusive()), pn.likelihoods.Categorical(), 22)
    x, y = torch.randn(22, 5), torch.randint(3, (22,))
    pn.fit(model, pn.guides.Point(model), (x, y), epochs=1, batch_size=10)  # the rest of 2 joins
    few = pn.NormalizationModel(pn.convert(mlp(), Exclusive()), pn.likelihoods.Categorical(), 2)
    with pytest.raises(ShapeError, match="other examples"):
        pn.fit(few, pn.guides.Point(few), (x[:2], y[:2]), epochs=1)


def test_there_is_no_bank():
    network = pn.convert(mlp(), Exclusive())
    pn.estimate_population_statistics(network, torch.randn(20, 5))
    with pytest.raises(ConversionError, match=r"BatchNoise\(model, batch_size - 1\)"):
        pn.collect_bank(network, torch.randn(20, 5))
