"""Inputs of double precision are cast to the network's wherever data are taken, and tell the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm import diagnostics
from pyronorm.baselines import fit_jackknife, fit_laplace, predict_dropout
from pyronorm.infer import log_likelihoods, predictive_nll
from pyronorm.likelihoods import Categorical, Normal
from tests.nets import mlp

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


def trained() -> tuple[pn.NormalizationModel, pn.guides.MeanField]:
    torch.manual_seed(2)
    model = pn.NormalizationModel(pn.convert(mlp()), Categorical(), 24)
    pn.estimate_population_statistics(model, X)
    return model, pn.guides.MeanField(model, init_std=0.3)


def fitted(x: torch.Tensor) -> object:
    model, guide = trained()
    return pn.fit(model, guide, (x, Y), epochs=2, seed=0, progress=False).losses


def estimated(x: torch.Tensor) -> object:
    model, _ = trained()
    pn.estimate_population_statistics(model, x)
    return model.network.reference_statistics()


def started(x: torch.Tensor) -> object:
    torch.manual_seed(2)
    network = pn.convert(mlp(), pn.normalizers.Weight(), example_input=x)
    pn.data_dependent_start(network, x)
    return network(X)


def started_analytically(x: torch.Tensor) -> object:
    torch.manual_seed(2)
    network = pn.convert(mlp(), pn.normalizers.Weight(), example_input=x)
    pn.analytic_start(network, x)
    return network(X)


def dropped(x: torch.Tensor) -> object:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model = pn.NormalizationModel(pn.convert(network), Categorical(), 24)
    return predict_dropout(model, x, 4, seed=0).mean


def jackknifed(x: torch.Tensor) -> object:
    torch.manual_seed(2)
    network = pn.convert(nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1)))
    model = pn.NormalizationModel(network, Normal(), 24)
    return fit_jackknife(model, (x, X[:, :1])).residuals


DOORS = {
    "fit": fitted,
    "estimate": estimated,
    "start": started,
    "analytic start": started_analytically,
    "bank": lambda x: pn.collect_bank(trained()[0], x, 2, 8, seed=0).mean,
    "predict": lambda x: pn.predict(*trained(), x, 4, seed=0).mean,
    "evaluate": lambda x: pn.evaluate(*trained(), (x, Y), 4, seed=0)["nll"],
    "nll": lambda x: predictive_nll(*trained(), (x, Y), 4, seed=0),
    "log likelihoods": lambda x: log_likelihoods(*trained(), (x, Y), 4, seed=0),
    "nuts": lambda x: pn.run_nuts(trained()[0], (x, Y), 4, 2, 1, seed=0, progress=False).shift,
    "arviz": lambda x: pn.to_arviz(*trained(), (x, Y), 4, seed=0)["log_likelihood"]["y"].values,
    "mode gap": lambda x: diagnostics.mode_gap(trained()[0], (x, Y), 8).evaluation_loss,
    "shift": lambda x: diagnostics.estimation_shift(trained()[0], x).mean,
    "laplace": lambda x: fit_laplace(trained()[0], (x, Y), prior_precision=1.0).root,
    "dropout": dropped,
    "jackknife": jackknifed,
}


def numbers(value: object) -> list[torch.Tensor]:
    if isinstance(value, (tuple, list)):
        return [number for part in value for number in numbers(part)]
    return [torch.as_tensor(value).detach().double()]


@pytest.mark.parametrize("door", DOORS)
def test_double_inputs(door):
    expected, found = (numbers(DOORS[door](x)) for x in (X, X.double()))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
