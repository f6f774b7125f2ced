from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pyronorm import (
    LatentNetwork,
    collect_bank,
    convert,
    estimate_population_statistics,
)
from pyronorm.errors import ConversionError, DataError, OptionError, StatisticsError
from pyronorm.normalizers import Batch, LatentNorm
from pyronorm.stats import log_var_mean, log_var_variance, shift_variance
from tests.giving import give
from tests.nets import SHAPES, ResNet, conv_net, mlp, train_briefly

NETS = {
    "1d, no positions": (mlp, (5,)),
    "1d": (lambda: conv_net(1), SHAPES[1]),
    "2d": (lambda: conv_net(2), SHAPES[2]),
    "3d": (lambda: conv_net(3), SHAPES[3]),
    "residual": (ResNet, (3, 9, 8)),
}


@pytest.fixture(params=NETS)
def case(request):
    make, shape = NETS[request.param]
    return train_briefly(make(), shape, steps=5), torch.randn(18, *shape) + 0.5


def outputs_of_norms(network: nn.Module, kinds, x: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handles = [
        m.register_forward_hook(lambda m, args, y: seen.append(y.clone()))
        for m in network.modules()
        if isinstance(m, kinds)
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return seen


def test_a_row_is_the_original_network_with_that_batchs_statistics_layer_by_layer(case):
    original, data = case
    batches = list(data.split(6))
    network = convert(original)
    bank = collect_bank(network, batches)
    latent = LatentNetwork(network).eval()
    norms = {
        n: m for n, m in original.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    means, variances = bank.space.unpack(bank.mean), bank.space.unpack(bank.var)
    test = torch.randn(4, *data.shape[1:])
    for row, batch in enumerate(batches):
        # the batch's own statistics, found by torch: momentum 1 leaves mean and unbiased variance
        state = {k: v.clone() for k, v in original.state_dict().items()}
        for norm in norms.values():
            norm.momentum = 1.0
        counts = {}
        for name, norm in norms.items():
            norm.register_forward_pre_hook(
                lambda m, args, name=name: counts.__setitem__(
                    name, args[0].numel() // args[0].shape[1]
                )
            )
        with torch.no_grad():
            original.train()(batch)
        for name, norm in norms.items():
            norm.running_var *= (counts[name] - 1) / counts[name]
            torch.testing.assert_close(means[name][row], norm.running_mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(variances[name][row], norm.running_var, rtol=1e-4, atol=1e-6)
        expected = outputs_of_norms(original.eval(), nn.modules.batchnorm._BatchNorm, test)
        for layer in latent.layers:
            give(layer, None)
        shift, scale = bank.shift[row], bank.scale[row]
        seen: list[torch.Tensor] = []
        handles = [
            m.register_forward_hook(lambda m, args, y: seen.append(y.clone()))
            for m in latent.layers
        ]
        y = latent(test, shift, scale)
        for handle in handles:
            handle.remove()
        assert len(seen) == len(expected) == len(norms)
        for ours, theirs in zip(seen, expected, strict=True):
            assert (ours - theirs).abs().max() < 1e-5
        assert (y - original(test)).abs().max() < 1e-5
        original.load_state_dict(state)


def test_collecting_changes_nothing(case):
    original, data = case
    network = convert(original).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    collect_bank(network, data, num_batches=3, batch_size=6)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not any(m.training for m in network.modules())


def gaussian_layer(num_data: int, channels: int) -> tuple[LatentNorm, torch.Tensor]:
    layer = LatentNorm(Batch(eps=1e-12), channels).double()
    x = torch.randn(num_data, channels, dtype=torch.double) * 3 + 1
    estimate_population_statistics(layer, x, batch_size=num_data)
    return layer, x


@pytest.mark.parametrize("n", [8, 32, 128])
@pytest.mark.parametrize("replacement", [True, False])
def test_the_law_of_batch_noise_on_gaussian_inputs(n, replacement):
    """Moments of shift and log S^2 within 4.5 standard errors (false alarm 7e-6 each)."""
    num_data, channels, rows = 20_000, 40, 150
    layer, x = gaussian_layer(num_data, channels)
    sampler = RandomSampler(range(num_data), replacement=replacement)
    loader = DataLoader(TensorDataset(x), batch_size=n, sampler=sampler, drop_last=True)
    bank = collect_bank(layer, loader, num_batches=rows)
    assert bank.batch_size == n
    shift, log_var = bank.shift.flatten(), -2 * bank.scale.log().flatten()
    count = math.sqrt(len(shift))
    variance = shift_variance(n, None if replacement else num_data)
    assert abs(shift.mean()) < 4.5 * math.sqrt(variance) / count
    assert abs(shift.var() / variance - 1) < 4.5 * math.sqrt(2) / count
    # the data set's own skewness and kurtosis (20,000 values) disturb the law by O(1/sqrt(N))
    slack = 4.5 * math.sqrt(24 / num_data / channels)
    spread = float(log_var_variance(n))
    assert abs(log_var.mean() - log_var_mean(n)) < 4.5 * math.sqrt(spread) / count + slack / n
    kurtosis = 3 + 6 / (n - 1)  # of log chi-square, roughly: a bound for the standard error
    assert abs(log_var.var() / spread - 1) < 4.5 * math.sqrt(kurtosis - 1) / count + slack
    # independence of the two
    correlation = torch.corrcoef(torch.stack([shift, log_var]))[0, 1]
    assert abs(correlation) < 4.5 / count + slack


@pytest.mark.parametrize("n", [8, 32])
def test_the_law_in_shape_not_only_in_moments(n):
    """Kolmogorov-Smirnov, p > 1e-4 for each of the two: a false alarm in 5,000 runs."""
    from scipy import stats

    layer, x = gaussian_layer(50_000, 20)
    sampler = RandomSampler(range(len(x)), replacement=True)
    loader = DataLoader(TensorDataset(x), batch_size=n, sampler=sampler, drop_last=True)
    bank = collect_bank(layer, loader, num_batches=100)
    shift, square = bank.shift.flatten(), n / bank.scale.flatten().square()
    assert stats.kstest(shift.numpy() * math.sqrt(n), "norm").pvalue > 1e-4
    assert stats.kstest(square.numpy(), "chi2", args=(n - 1,)).pvalue > 1e-4


def test_loader_is_iterated_as_often_as_needed_and_a_rest_is_left_out():
    network = convert(train_briefly(mlp(), (5,), steps=3))
    x = torch.randn(20, 5)
    loader = DataLoader(TensorDataset(x), batch_size=8, shuffle=True)
    assert len(collect_bank(network, loader)) == 2
    bank = collect_bank(network, loader, num_batches=5)
    assert (len(bank), bank.batch_size) == (5, 8)
    assert len(collect_bank(network, x, 3, batch_size=7)) == 3


def test_layers_without_batch_statistics_are_neutral_in_the_bank():
    original = nn.Sequential(
        nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3), nn.BatchNorm1d(3)
    )
    network = convert(original)
    estimate_population_statistics(network, torch.randn(30, 5))
    bank = collect_bank(network, torch.randn(30, 5), batch_size=6)
    assert torch.equal(bank.shift[:, :4], torch.zeros(5, 4))
    assert torch.equal(bank.scale[:, :4], torch.ones(5, 4))
    assert (bank.shift[:, 4:] != 0).all()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.norm(x) + 1)


def test_errors():
    network = convert(train_briefly(mlp(), (5,), steps=3))
    x = torch.randn(20, 5)
    with pytest.raises(StatisticsError, match="no population statistics"):
        collect_bank(convert(mlp()), x)
    with pytest.raises(ConversionError, match="no batch normalizer"):
        collect_bank(convert(mlp(norm=lambda c: nn.GroupNorm(2, c))), x)
    with pytest.raises(ConversionError, match="norm runs more than once per batch"):
        collect_bank(convert(train_briefly(Twice(), (5,), steps=1)), x)
    with pytest.raises(DataError, match="there is no batch"):
        collect_bank(network, [])
    with pytest.raises(DataError, match="one size, got 8 and then 12"):
        collect_bank(network, [x[:8], x[8:]])
    with pytest.raises(OptionError, match="num_batches must be at least 1"):
        collect_bank(network, x, num_batches=0)
    x[3] = torch.nan
    with pytest.raises(DataError, match="batch 0 has inputs that are not finite"):
        collect_bank(network, x)
    x[3] = 1e38  # finite, but not its square
    with pytest.raises(StatisticsError, match="1 has batch statistics that are not finite"):
        collect_bank(network, x)
