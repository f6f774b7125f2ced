"""SWAG over all weights: moments of a recorded path, the width on a quadratic loss, networks drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.baselines import CollectWeights, WeightSWAG
from pyronorm.errors import OptionError
from pyronorm.infer import Callback

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 4


class Recorder(Callback):
    def __init__(self) -> None:
        self.path: list[torch.Tensor] = []

    def on_step_end(self, trainer: Any) -> None:
        parameters = trainer.model.network.parameters()
        self.path.append(nn.utils.parameters_to_vector(parameters).detach().double().clone())


def classifier(norm: Any = nn.BatchNorm1d) -> pn.NormalizationModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), norm(5) if norm else nn.Tanh(), nn.Linear(5, 4))
    latent = pn.LatentNetwork(pn.convert(network) if norm else network, plain=norm is None)
    return pn.NormalizationModel(latent, pn.likelihoods.Categorical(), num_data=len(X))


def train(model: pn.NormalizationModel, *callbacks: Any, **options: Any) -> None:
    sgd = pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.3))
    options = {"optimization": sgd, "epochs": 3, **options}
    guide = options.pop("guide", pn.guides.Point(model))
    pn.fit(
        model,
        guide,
        options.pop("data", (X, Y)),
        batch_size=12,
        callbacks=callbacks,
        seed=0,
        progress=False,
        **options,
    )


def collected(model: pn.NormalizationModel, rank: int = 4, **options: Any) -> WeightSWAG:
    swag = CollectWeights(rank, **options)
    train(model, swag)
    return swag.posterior(model)


def test_the_moments_are_those_of_the_recorded_path() -> None:
    model = classifier()
    recorder, swag = Recorder(), CollectWeights(3, after=2, every=2)
    train(model, recorder, swag)
    path = torch.stack(recorder.path[2::2]).numpy()
    assert len(recorder.path) == 12
    assert len(swag) == len(path) == 5
    posterior = swag.posterior(model)
    means = np.cumsum(path, 0) / np.arange(1, 6)[:, None]
    np.testing.assert_allclose(posterior.mean, path.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(posterior.variance, path.var(0), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(posterior.deviations, (path - means)[-3:].T, atol=1e-14)


def test_draws_have_the_covariance_of_the_formula() -> None:
    posterior = collected(classifier(None))
    count = 40_000
    w = posterior.draw_weights(count, seed=0)
    v, d = posterior.variance, posterior.deviations
    covariance = v.diag() / 2 + d @ d.T / (2 * 3)
    std = covariance.diagonal().sqrt()
    assert ((w.mean(0) - posterior.mean).abs() <= 5 * std / math.sqrt(count)).all()
    error = (w.T.cov() - covariance).abs() / (std * std[:, None])
    assert error.max() < 6 * math.sqrt(2 / count)
    assert torch.equal(w[:2], posterior.draw_weights(count, seed=0)[:2])


def test_the_path_of_gradient_descent_on_a_quadratic_loss() -> None:
    r"""With w' = w - η (w - ȳ), w_t = ȳ + (1 - η)^t (w_0 - ȳ)."""
    rate, steps = 0.25, 8
    latent = pn.LatentNetwork(nn.Linear(1, 1, bias=False).double(), plain=True)
    y = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    model = pn.NormalizationModel(latent, pn.likelihoods.Normal(1.0).double(), num_data=len(y))
    start = model.network.network.weight.item()
    swag = CollectWeights(2)
    pn.fit(
        model,
        pn.guides.Point(model),
        (torch.ones_like(y), y),
        epochs=steps,
        batch_size=len(y),
        optimization=pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=rate)),
        callbacks=[swag],
        seed=0,
        progress=False,
    )
    path = 0.5 + (1 - rate) ** np.arange(1, steps + 1) * (start - 0.5)
    posterior = swag.posterior(model)
    assert posterior.mean.item() == pytest.approx(path.mean(), rel=1e-12)
    assert posterior.variance.item() == pytest.approx(path.var(), rel=1e-10)
    last = [path[k] - path[: k + 1].mean() for k in (steps - 2, steps - 1)]
    assert posterior.deviations[0].tolist() == pytest.approx(last, rel=1e-10)


def test_networks_have_statistics_of_their_own() -> None:
    model = classifier()
    posterior = collected(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    networks = posterior.draw_networks(X, 3, batch_size=16, seed=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    prediction = pn.predict(networks.model, networks, X[:5], 1)
    weights = posterior.draw_weights(3, seed=1)
    outputs = []
    for (member, _), w in zip(networks.members, weights, strict=True):
        parameters = nn.utils.parameters_to_vector(member.network.parameters())
        torch.testing.assert_close(parameters, w.to(parameters))
        first, norm, last = member.network.network
        z = first(X)
        mean, var = z.mean(0), z.var(0, correction=0)
        torch.testing.assert_close(norm.running_mean, mean)
        h = (first(X[:5]) - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
        outputs.append(last(h).softmax(-1))
    torch.testing.assert_close(prediction.mean, torch.stack(outputs).mean(0).detach())
    assert pn.evaluate(networks.model, networks, (X, Y), 1)["nll"] > 0


def test_a_plain_network() -> None:
    posterior = collected(classifier(None))
    networks = posterior.draw_networks(X, 2, seed=0)
    assert len(pn.predict(networks.model, networks, X[:3], 1)) == 3


def test_it_goes_on_from_a_state() -> None:
    model = classifier()
    swag, other = CollectWeights(2), CollectWeights(2)
    train(model, swag)
    other.load_state_dict(swag.state_dict())
    assert torch.equal(other.posterior(model).deviations, swag.posterior(model).deviations)
    with pytest.raises(OptionError, match="has a path of other weights"):
        train(classifier(None), other)
    with pytest.raises(OptionError, match="the model has other weights"):
        swag.posterior(classifier(None))


def test_refusals() -> None:
    model = classifier()
    with pytest.raises(OptionError, match="rank must be at least 2"):
        CollectWeights(1)
    with pytest.raises(OptionError, match="needs at least 2 points of the path, got 0"):
        CollectWeights().posterior(model)
    with pytest.raises(OptionError, match=r"needs guides\.Point, got MeanField"):
        train(model, CollectWeights(), guide=pn.guides.MeanField(model))
    learned = pn.NormalizationModel(
        model.network, pn.likelihoods.Normal(learned=True), num_data=len(X)
    )
    data = X, torch.zeros(len(X), 4)
    train(learned, data=data)
    with pytest.raises(OptionError, match="no weight of the network is trained"):
        train(learned, CollectWeights(), data=data, train_network=False)
