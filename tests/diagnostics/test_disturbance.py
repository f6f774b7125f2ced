"""Disturbance against all batches enumerated, and against the law of batch noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from pyronorm import convert
from pyronorm.diagnostics import normalization_disturbance
from pyronorm.errors import OptionError, ShapeError
from pyronorm.normalizers import Batch, BatchWhitening, Group, GroupWhitening, LatentNorm, Layer
from pyronorm.stats import Eigen
from tests.nets import conv_net, mlp


def enumerated(x: Tensor, size: int, normalize) -> list[float]:
    """Every batch of that size with example i in it, written out."""
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        values = [
            normalize(x[[i, *rest]])[0].flatten()
            for rest in itertools.combinations(others, size - 1)
        ]
        mean = torch.stack(values).mean(0)
        found.append(float(sum((v - mean).norm() for v in values)) / len(values))
    return found


def standardize(batch: Tensor) -> Tensor:
    axes = [d for d in range(batch.ndim) if d != 1]
    centred = batch - batch.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
@pytest.mark.parametrize("size", [2, 4])
def test_is_the_expectation_over_all_batches(shape, size):
    """1,500 random batches against all of them (7 choose size): within 6 %."""
    x = torch.randn(8, *shape)
    layer = LatentNorm(Batch(), 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.1, 5.0, -3.0]))  # not part of the disturbance
        layer.bias.fill_(7.0)
    [found] = normalization_disturbance(layer, x, [size], num_draws=1500)
    expected = enumerated(x, size, standardize)
    assert found.layers["LatentNorm"].tolist() == pytest.approx(expected, rel=0.06)
    assert found.batch_size == size
    d = math.prod(shape)
    assert found.dims == {"LatentNorm": d}
    assert found.normalized["LatentNorm"] == pytest.approx(
        sum(expected) / 8 / math.sqrt(d), rel=0.02
    )


def test_output_is_that_of_the_whole_network():
    x = torch.randn(6, 5)
    network = convert(mlp())

    def run(batch: Tensor) -> Tensor:
        network.train()
        with torch.no_grad():
            return network(batch)

    [found] = normalization_disturbance(network, x, [4], num_draws=1500)
    assert found.output.tolist() == pytest.approx(enumerated(x, 4, run), rel=0.07)
    assert found.output_dim == 3
    assert list(found.layers) == ["1", "4"]


def test_few_draws_are_not_too_small_on_average():
    layer = LatentNorm(Batch(), 40)
    x = torch.randn(2000, 40)
    few, many = (
        normalization_disturbance(layer, x, [20], num_draws=n, seed=3)[0].normalized["LatentNorm"]
        for n in (2, 40)
    )
    assert few == pytest.approx(many, rel=0.03)  # without the factor it would be 0.71 of it


def test_independent_gaussian_values_have_the_noise_of_the_law():
    r"""Var(M) and Var(S) of the n - 1 others: about sqrt((1 + x^2 / 2) / n) per value."""
    n = 64
    layer = LatentNorm(Batch(), 30)
    x = torch.randn(4000, 30)
    [found] = normalization_disturbance(layer, x, [n], num_draws=20)
    expected = ((1 + x.square() / 2).sum(1) / n).sqrt()
    assert float(found.layers["LatentNorm"].mean()) == pytest.approx(
        float(expected.mean()), rel=0.04
    )


@pytest.mark.parametrize("normalizer", [Group(2), Layer(), GroupWhitening(2)])
def test_normalizers_of_single_examples_are_not_disturbed(normalizer):
    network = convert(conv_net(2), normalizer)
    for found in normalization_disturbance(network, torch.randn(12, 2, 5, 6), [3, 5], num_draws=4):
        assert max(found.normalized.values()) < 1e-5
        assert float(found.output.max()) < 1e-5


def test_whitening_is_disturbed_more_than_batch_and_both_less_in_larger_batches():
    x = torch.randn(128, 8)
    whitening, batch = (
        [
            d.normalized["LatentNorm"]
            for d in normalization_disturbance(LatentNorm(norm, 8), x, [16, 32, 64])
        ]
        for norm in (BatchWhitening(8, whiten=Eigen()), Batch())
    )
    assert all(a > 1.3 * b for a, b in zip(whitening, batch, strict=True))
    for values in (whitening, batch):
        assert values[0] > values[1] > values[2]


def test_the_network_and_the_generator_are_left_alone():
    network = convert(conv_net(2)).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    hooks = [len(m._forward_pre_hooks) for m in network.modules()]
    x = torch.randn(9, 2, 5, 6)
    state = torch.get_rng_state()
    normalization_disturbance(network, x, [4], num_draws=2)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(m.training for m in network.modules())
    assert [len(m._forward_pre_hooks) for m in network.modules()] == hooks
    assert torch.equal(state, torch.get_rng_state())


class Transposing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(0, 2)).transpose(0, 2)


def test_errors():
    network, x = convert(mlp()), torch.randn(9, 5)
    with pytest.raises(OptionError, match="from 1 to 9 .*, got 10"):
        normalization_disturbance(network, x, [4, 10])
    with pytest.raises(OptionError, match="num_draws must be at least 2, got 1"):
        normalization_disturbance(network, x, [4], num_draws=1)
    with pytest.raises(ShapeError, match="norm has 3 items on axis 0 for 4 examples"):
        normalization_disturbance(convert(Transposing()), torch.randn(9, 5, 3), [4])
