"""Moments of a path of training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pyronorm as pn
from pyronorm.errors import OptionError, ShapeError
from pyronorm.guides import MAP, SWAG, MeanField
from pyronorm.infer import Callback
from pyronorm.testing.posterior import small_inputs, small_model


class Recorder(Callback):
    def __init__(self) -> None:
        self.path: list[torch.Tensor] = []

    def on_step_end(self, trainer) -> None:
        self.path.append(trainer.guide.loc.double().clone())


def sgd(lr: float) -> pn.Optimization:
    return pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=lr))


def train(model, *callbacks, epochs=4, **options):
    data = small_inputs(50).to(model.network.like.dtype), torch.arange(50) % 3
    options = {"train_network": False, "optimization": sgd(0.3), **options}
    pn.fit(
        model,
        MAP(model),
        data,
        epochs=epochs,
        batch_size=10,
        callbacks=callbacks,
        seed=0,
        progress=False,
        **options,
    )


def test_the_moments_are_those_of_the_recorded_path() -> None:
    model = small_model()
    recorder, swag = Recorder(), pn.CollectSWAG(4, after=5, every=2)
    train(model, recorder, swag)
    assert len(recorder.path) == 20
    path = torch.stack(recorder.path[5::2]).numpy()
    assert len(swag) == len(path) == 8
    posterior = swag.posterior(model)
    means = np.cumsum(path, 0) / np.arange(1, 9)[:, None]
    deviations = (path - means)[-4:].T
    np.testing.assert_allclose(posterior.loc.numpy(), path.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(posterior.variance.numpy(), path.var(0), rtol=1e-4, atol=1e-10)
    expected = np.diag(path.var(0)) / 2 + deviations @ deviations.T / (2 * 3)
    np.testing.assert_allclose(posterior.covariance().numpy(), expected, rtol=1e-3, atol=1e-9)


def test_the_width_is_that_of_sgd_on_a_quadratic_loss() -> None:
    r"""z' = z - η (h z + ε): the variance is η σ² / (h (2 - η h))."""
    rate, h, sigma = 0.2, torch.tensor([0.5, 2.0]).double(), 1.5
    swag = pn.CollectSWAG(2)
    generator = torch.Generator().manual_seed(0)
    noise = sigma * torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    z = torch.zeros(2, dtype=torch.float64)
    for e in noise:
        z = z - rate * (h * z + e)
        swag.update(z)
    exact = rate * sigma**2 / (h * (2 - rate * h))
    # the path is correlated: (1 + a) / (1 - a) steps count as one, a = 1 - rate h
    a = 1 - rate * h
    error = 5 * (2 / 20_000 * (1 + a**2) / (1 - a**2)).sqrt()
    found = swag.state_dict()["moments"]["var"]
    assert ((found / exact - 1).abs() < error).all()


def test_its_draws_predict() -> None:
    model = small_model()
    swag = pn.CollectSWAG(5)
    train(model, swag)
    posterior = swag.posterior(model)
    draws = posterior.draw(model, 20_000, seed=0)
    z = torch.cat([draws.shift, draws.scale.log()], 1)
    covariance = posterior.covariance()
    std = covariance.diagonal().sqrt()
    assert ((z.mean(0) - posterior.loc).abs() < 5 * std / math.sqrt(20_000)).all()
    assert ((z.T.cov() - covariance) / (std * std[:, None])).abs().max() < 0.06
    assert len(pn.predict(model, posterior, small_inputs(3), 4)) == 3
    other = pn.CollectSWAG(5)
    other.load_state_dict(swag.state_dict())
    assert torch.equal(other.posterior(model).deviations, posterior.deviations)


def test_refusals() -> None:
    model = small_model()
    with pytest.raises(OptionError, match="rank must be at least 2"):
        pn.CollectSWAG(1)
    with pytest.raises(OptionError, match="rank must be at least 2"):
        SWAG(model, 1)
    with pytest.raises(OptionError, match="needs at least 2 points of the path, got 0"):
        pn.CollectSWAG().posterior(model)
    with pytest.raises(OptionError, match="the network is trained as well"):
        train(model, pn.CollectSWAG(), train_network=True)
    with pytest.raises(ShapeError, match="mean must have 18 latents"):
        SWAG.from_moments(model, torch.zeros(4), torch.ones(4), torch.zeros(4, 2))
    assert MeanField.is_point is False
