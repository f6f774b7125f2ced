"""Monte-Carlo dropout against passes by hand, and against its closed form for a linear layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.baselines import predict_dropout
from pyronorm.errors import DataError, OptionError, StatisticsError
from pyronorm.networks import MLP
from tests.nets import train_briefly


def classifier(norm=None) -> pn.NormalizationModel:
    network = MLP(3, 4, (6, 5), norm=norm, dropout=0.3)
    if norm is None:
        latent = pn.LatentNetwork(network, plain=True)
    else:
        latent = pn.LatentNetwork(pn.convert(train_briefly(network, (3,))))
    return pn.NormalizationModel(latent, pn.likelihoods.Categorical(), num_data=20)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d])
def test_passes_by_hand(norm) -> None:
    model, x = classifier(norm), torch.randn(7, 3)
    network = copy.deepcopy(model.network.network).eval()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    torch.manual_seed(3)
    found = predict_dropout(model, [x], 5)  # a DataLoader would draw a seed of its own
    torch.manual_seed(3)
    with torch.no_grad():
        logits = torch.stack([network(x) for _ in range(5)])
    expected = model.likelihood.predict(logits)
    torch.testing.assert_close(found.samples, logits.softmax(-1))
    for name in ("mean", "variance", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert found.mutual_information.min() > 0


def test_variance_of_a_linear_layer() -> None:
    network = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2)).double()
    latent = pn.LatentNetwork(network, plain=True)
    model = pn.NormalizationModel(latent, pn.likelihoods.Normal(0.5).double(), num_data=4)
    x = torch.randn(4, 3, dtype=torch.float64)
    draws = 500
    found = predict_dropout(model, x, draws)
    with torch.no_grad():
        mean = network[1](x)
        var = (0.2 / 0.8) * x.square() @ network[1].weight.square().T
    # Bands of 5 standard errors; the variance of 500 draws is off by 6 %, a little more or less.
    assert ((found.mean - mean).abs() < 5 * (var / draws).sqrt()).all()
    torch.testing.assert_close(found.variance, var + 0.25, rtol=0.35, atol=1e-6)


def test_nothing_is_changed_and_batches_do_not_matter() -> None:
    model = classifier(nn.BatchNorm1d).train()
    model.network.network.fc.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    found = predict_dropout(model, torch.randn(9, 3), 3, batch_size=4, keep_samples=False)
    assert found.samples is None
    assert found.mean.shape == (9, 4)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_with_a_posterior_of_the_latents() -> None:
    model, x = classifier(nn.BatchNorm1d), torch.randn(7, 3)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-12  # no value is dropped
    guide = pn.guides.BatchNoise(model, 8)
    torch.manual_seed(1)
    found = predict_dropout(model, [x], 6, posterior=guide)
    torch.manual_seed(1)
    torch.testing.assert_close(found.samples, pn.predict(model, guide, [x], 6).samples)


@pytest.mark.parametrize("dropout", [None, 0.0])
def test_without_dropout_it_is_refused(dropout: float | None) -> None:
    network = nn.Sequential(nn.Linear(3, 2), *([] if dropout is None else [nn.Dropout(dropout)]))
    latent = pn.LatentNetwork(network, plain=True)
    model = pn.NormalizationModel(latent, pn.likelihoods.Categorical(), num_data=4)
    with pytest.raises(OptionError, match="Sequential has no dropout module with p > 0"):
        predict_dropout(model, torch.randn(4, 3))


def test_data_are_checked() -> None:
    model = classifier()
    with pytest.raises(DataError, match="batch 1 has inputs that are not finite"):
        predict_dropout(model, [torch.zeros(2, 3), torch.full((2, 3), torch.nan)], 2)
    with pytest.raises(DataError, match="there is no batch"):
        predict_dropout(model, [], 2)
    with pytest.raises(OptionError, match="num_samples"):
        predict_dropout(model, torch.zeros(2, 3), 0)


def test_stale_statistics_are_refused() -> None:
    model = classifier(nn.BatchNorm1d)
    with torch.no_grad():
        model.network.network.fc.weight.mul_(2)
    with pytest.raises(StatisticsError):
        predict_dropout(model, torch.zeros(2, 3), 2)
