from __future__ import annotations

import pytest
import torch
from torch import nn

from pyronorm import (
    LatentNetwork,
    NormalizationModel,
    collect_bank,
    conversion_report,
    convert,
    estimate_population_statistics,
    fit,
    predict,
)
from pyronorm.errors import ConversionError, DataError, OptionError, StatisticsError
from pyronorm.guides import MeanField
from pyronorm.likelihoods import Categorical
from pyronorm.normalizers import Batch, Group, LatentNorm
from tests.nets import SHAPES, conv_net, mlp


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_first_layer_has_the_moments_of_the_whole_data_set(dims):
    network = convert(conv_net(dims))
    x = torch.randn(23, *SHAPES[dims]) * 2 + 1
    estimate_population_statistics(network, x, batch_size=5)  # the last batch has 3
    before = network[0](x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(network[1].running_mean, before.mean(1))
    torch.testing.assert_close(network[1].running_var, before.var(1, correction=0))
    assert network[1].num_batches_tracked == 5


def test_deeper_layers_see_batch_normalized_inputs():
    network = convert(mlp())
    batches = [torch.randn(8, 5), torch.randn(4, 5) * 2]
    estimate_population_statistics(network, batches)
    reference = mlp()
    reference.load_state_dict(network.state_dict())
    hidden = []
    reference[3].register_forward_hook(lambda m, args, y: hidden.append(y))
    for x in batches:
        reference.train()(x)
    hidden = torch.cat(hidden)
    torch.testing.assert_close(network[4].running_mean, hidden.mean(0))
    torch.testing.assert_close(network[4].running_var, hidden.var(0, correction=0))


def test_evaluation_mode_then_standardizes_the_training_data():
    layer = LatentNorm(Batch(), 3)
    x = torch.randn(50, 3, 7) * 4 - 2
    estimate_population_statistics(layer, x, batch_size=50)
    torch.testing.assert_close(layer.eval()(x), layer.train()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [lambda n: n, LatentNetwork, lambda n: NormalizationModel(n, Categorical(), 20)],
    ids=["network", "LatentNetwork", "model"],
)
def test_takes_network_latent_network_and_model(wrap):
    network = convert(mlp())
    wrapped = wrap(network)
    estimate_population_statistics(wrapped, torch.randn(20, 5))
    LatentNetwork(network).check_statistics()


def test_modes_are_kept_and_dropout_is_off():
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3), nn.ReLU())
    network = convert(network).eval()
    x = torch.randn(64, 3) + 5
    estimate_population_statistics(network, x)
    assert not any(m.training for m in network.modules())
    torch.testing.assert_close(network[1].running_mean, x.mean(0))
    assert network[1].recorder is None


def test_number_of_batches():
    network = convert(mlp())
    x = torch.randn(20, 5)
    estimate_population_statistics(network, x, num_batches=2, batch_size=6)
    torch.testing.assert_close(network[1].running_mean, network[0](x[:12]).mean(0))
    assert network[1].num_batches_tracked == 2
    with pytest.raises(OptionError, match="num_batches must be at least 1"):
        estimate_population_statistics(network, x, num_batches=0)


def test_networks_without_batch_layers_are_left_alone():
    network = convert(mlp(norm=lambda c: nn.GroupNorm(2, c)), Group(2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    estimate_population_statistics(network, torch.randn(20, 5))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_errors():
    network = convert(mlp())
    with pytest.raises(DataError, match="there is no batch"):
        estimate_population_statistics(network, [])
    x = torch.randn(20, 5)
    x[3, 2] = torch.inf
    with pytest.raises(DataError, match="batch 0 has inputs that are not finite"):
        estimate_population_statistics(network, x)
    x[3, 2] = 1e38  # finite, but not its square
    with pytest.raises(StatisticsError, match="1: its inputs over the data are not finite"):
        estimate_population_statistics(network, x)
    assert network[1].num_batches_tracked == 0  # nothing was written
    with pytest.raises(ConversionError, match="convert it first"):
        estimate_population_statistics(mlp(), x)
    spare = nn.Sequential(nn.Identity())
    spare.add_module("norm", convert(nn.BatchNorm1d(3)))
    spare.forward = lambda x: x
    with pytest.raises(StatisticsError, match="never ran this layer, nor any other"):
        estimate_population_statistics(spare, torch.randn(20, 5))


class WithHead(nn.Module):
    """An auxiliary head that runs in training mode alone, or when asked."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.head = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
        self.asked = False

    def forward(self, x):
        y = self.net(x)
        return y + 0.1 * self.head(y) if self.training or self.asked else y


def test_layers_that_never_run_are_named_once_and_refused_when_they_run(tmp_path):
    torch.manual_seed(0)
    network = convert(WithHead())
    x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
    model = NormalizationModel(network, Categorical(), num_data=64)
    guide = MeanField(model)
    with pytest.warns(UserWarning, match=r"never ran head\.0 on these data") as caught:
        fit(model, guide, (x, y), epochs=2, progress=False)
    assert len(caught) == 1
    assert predict(model, guide, x, 4).mean.isfinite().all()
    report = conversion_report(network)
    assert [row.statistics for row in report.converted][-1].endswith("never ran, no population")
    # a bank has nothing of it, and what follows from a bank leaves it neutral
    bank = collect_bank(model, x, 8)
    assert bank.shift[:, -3:].isnan().all() or not bank.shift[:, -3:].any()
    assert predict(model, bank, x, 4).mean.isfinite().all()
    # what is known of it survives saving
    other = LatentNetwork(convert(WithHead()))
    other.network.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.eval()(x), LatentNetwork(network).eval()(x))
    network.asked = True
    with pytest.raises(StatisticsError, match=r"head\.0: it has no population statistics"):
        LatentNetwork(network).eval()(x)
    estimate_population_statistics(network, x)  # now it runs
    assert LatentNetwork(network).eval()(x).isfinite().all()
    # other weights make the rest stale, and this layer is no excuse
    with torch.no_grad():
        network.net[0].weight.mul_(2)
    with pytest.raises(StatisticsError, match="stale"):
        LatentNetwork(network).eval()(x)


def test_layers_that_are_kept_normalize_with_what_they_have():
    network = convert(mlp())
    x = torch.randn(20, 5)
    estimate_population_statistics(network, x)
    first = network[1]
    before = first.running_mean.clone()
    estimate_population_statistics(network, 3 * x, keep=[first])
    assert torch.equal(first.running_mean, before)
    hidden = network[:4].eval()(3 * x)
    torch.testing.assert_close(network[4].running_mean, hidden.mean(0))
