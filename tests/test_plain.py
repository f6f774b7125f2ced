"""Plain networks: the same training and prediction, without latents."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import ConversionError, OptionError
from pyronorm.networks import MLP

NUM_DATA = 24


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(NUM_DATA, 3)
    return x, x[:, :1].square() + 0.1 * torch.randn(NUM_DATA, 1)


def plain_model(network: nn.Module) -> pn.NormalizationModel:
    latent = pn.LatentNetwork(network, plain=True)
    return pn.NormalizationModel(latent, pn.likelihoods.Normal(0.7), num_data=NUM_DATA)


def test_training_is_ordinary_training(data) -> None:
    network = MLP(3, 1, (6, 4), norm=None)
    by_hand = copy.deepcopy(network)
    model = plain_model(network)
    batches = list(zip(data[0].split(7), data[1].split(7), strict=True))  # the last one is smaller
    guide = pn.guides.Point(model)
    pn.fit(model, guide, batches, epochs=3, lr=0.02, progress=False)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.02)
    for _ in range(3):
        for x, y in batches:
            optimizer.zero_grad()
            (((by_hand(x) - y) / 0.7).square().mean() / 2).backward()
            optimizer.step()
    for parameter, expected in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


def test_prediction_and_metrics(data) -> None:
    network = MLP(3, 1, (6, 4), norm=None, dropout=0.3)
    model = plain_model(network)
    guide = pn.guides.Point(model)
    x, y = data
    output = network.eval()(x).detach()
    prediction = pn.predict(model, guide, x, 3, batch_size=10)
    torch.testing.assert_close(prediction.samples, output.expand(3, -1, -1))
    assert float(prediction.mutual_information.max()) < 1e-5
    expected = -torch.distributions.Normal(output, 0.7).log_prob(y).mean()
    assert pn.evaluate(model, guide, data, 2)["nll"] == pytest.approx(float(expected), rel=1e-5)
    other = plain_model(MLP(3, 1, (5,), norm=None))
    both = pn.predict(model, pn.Ensemble([(model, guide), (other, pn.guides.Point(other))]), x, 2)
    mean = (output + other.network.network.eval()(x)) / 2
    torch.testing.assert_close(both.mean, mean)


@pytest.mark.parametrize("guide", [pn.guides.MeanField, pn.guides.LowRank, pn.guides.BatchNoise])
def test_other_guides_are_refused(guide) -> None:
    model = plain_model(MLP(3, 1, (4,), norm=None))
    arguments = (model, 8) if guide is not pn.guides.MeanField else (model,)
    with pytest.raises(OptionError, match=rf"{guide.__name__}: MLP is a plain network, without"):
        guide(*arguments)


def test_what_needs_latents_says_so(data) -> None:
    model = plain_model(MLP(3, 1, (4,), norm=None))
    with pytest.raises(OptionError, match="to_arviz.*: MLP is a plain network"):
        pn.to_arviz(model, pn.guides.Point(model), data, 4)
    with pytest.raises(OptionError, match="run_nuts: MLP is a plain network"):
        pn.run_nuts(model, data, 4, 2)
    with pytest.raises(ConversionError, match="no batch normalizer"):
        pn.collect_bank(model, data)


def test_latents_have_to_be_left_out_on_purpose() -> None:
    with pytest.raises(ConversionError, match="has no layer with latent statistics: convert it"):
        pn.LatentNetwork(MLP(3, 1, (4,), norm=None))


@pytest.mark.parametrize("convert", [False, True])
def test_normalization_layers_are_not_plain(convert: bool) -> None:
    network: nn.Module = MLP(3, 1, (4,))
    network = pn.convert(network) if convert else network
    with pytest.raises(ConversionError, match=r"'layers\.1' is a normalization layer"):
        pn.LatentNetwork(network, plain=True)


def test_works_as_a_pyro_model(data) -> None:
    model = plain_model(MLP(3, 1, (4,), norm=None))
    svi = pyro.infer.SVI(
        model, pn.guides.Point(model), pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()
    )
    losses = [svi.step(*data) for _ in range(20)]
    assert losses[-1] < losses[0]
