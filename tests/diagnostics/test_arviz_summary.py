from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.diagnostics import summarize
from pyronorm.errors import OptionError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    parts = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4)
    network = pn.convert(nn.Sequential(*parts, nn.Linear(4, 2)))
    made = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=30)
    pn.estimate_population_statistics(made, torch.randn(30, 3))
    return made


@pytest.fixture(scope="module")
def idata(model):
    return pn.to_arviz(model, pn.guides.BatchNoise(model, 16), num_samples=50, seed=0)


def test_a_row_per_layer_has_moments_over_its_channels(idata):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = summarize(idata)
    assert list(table.index.names) == ["variable", "layer"]
    assert list(table.loc["shift"].index) == ["1", "4"]
    assert table.loc[("scale", "4"), "channels"] == 4
    values = idata["posterior"]["shift"].values[0, :, :5]
    row = table.loc[("shift", "1")]
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert row["sd"] == pytest.approx(np.sqrt(values.var(0, ddof=1).mean()), rel=1e-5)
    assert row["max"] == pytest.approx(values.mean(0).max(), rel=1e-5)
    assert "r_hat" not in table  # independent draws have none
    assert {"mean", "std"} <= set(table.index.get_level_values(0))


def test_other_rows(idata):
    assert len(summarize(idata, "network").loc["shift"]) == 1
    assert len(summarize(idata, per="channel").loc["shift"]) == 9
    with pytest.raises(OptionError, match="per: expected one of"):
        summarize(idata, "row")
    with pytest.raises(OptionError, match="no channels of a network"):
        summarize({"posterior": {}})


def test_chains_have_r_hat_and_effective_sample_sizes(model):
    torch.manual_seed(0)
    shift = torch.randn(100, 9)
    shift[:50, 7] += 9  # the chains of one channel of the second layer disagree
    stats = {"diverging": torch.zeros(100, dtype=torch.bool)}
    draws = pn.Draws(shift, torch.ones(100, 9) + shift.abs(), num_chains=2, stats=stats)
    table = summarize(pn.to_arviz(model, draws))
    assert table.loc[("shift", "1"), "r_hat"] < 1.1 < 1.5 < table.loc[("shift", "4"), "r_hat"]
    assert table.loc[("shift", "4"), "ess_bulk"] < 20 < table.loc[("shift", "1"), "ess_bulk"]
