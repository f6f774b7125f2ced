from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.diagnostics import RealizedNoise, RealizedNoises, realized_noise
from pyronorm.errors import DataError, OptionError, StatisticsError
from tests.nets import conv_net, mlp


def model_of(network, normalizer, x, **options):
    converted = pn.convert(network, normalizer, **options)
    if isinstance(normalizer, pn.normalizers.Batch):
        pn.estimate_population_statistics(converted, x, batch_size=len(x))
    return pn.NormalizationModel(converted, pn.likelihoods.Categorical(), len(x))


def test_batch_normalization_realizes_what_is_nominal():
    x = torch.randn(400, 5)
    model = model_of(mlp(), pn.normalizers.Batch(), x)
    found = realized_noise(model, pn.guides.BatchNoise(model, 16), x, 4096)
    assert [row.layer for row in found] == list(model.space.names)
    for row in found:
        # sampling: a relative error of sqrt(2 / 4096 / channels) = 1 %, at 5 of them
        assert row.nominal == pytest.approx(16, rel=0.06)
        assert row.realized == pytest.approx(row.nominal, rel=1e-3)
        assert row.shift == pytest.approx(row.nominal, rel=1e-3)
        assert row.std == pytest.approx(1, rel=1e-3)
        expected = math.sqrt(0.25 * float(torch.special.polygamma(1, torch.tensor(7.5))))
        assert row.log_scale_std == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("dims", [1, 2])
def test_weight_normalization_outgrows_it(dims):
    shape = {1: (2, 6), 2: (2, 6, 6)}[dims]
    x = torch.randn(200, *shape)
    x = torch.cat([x, -x])  # so that the first layer's mean is 0
    rows = []
    for factor in (1.0, 3.0):  # the input of the first layer grows
        torch.manual_seed(0)
        model = model_of(conv_net(dims), pn.normalizers.Weight(), x, example_input=x[:2])
        rows.append(realized_noise(model, pn.guides.BatchNoise(model, 16), factor * x)[0])
    assert rows[1].nominal == rows[0].nominal
    assert rows[1].std == pytest.approx(3 * rows[0].std, rel=1e-4)
    assert rows[1].realized == pytest.approx(9 * rows[0].realized, rel=1e-4)


def test_channels_last_by_hand():
    network = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    x = torch.randn(50, 7, 5)
    model = pn.NormalizationModel(
        pn.convert(network),
        pn.likelihoods.Likelihood.of(lambda f: torch.distributions.Normal(f, 1)),
        50,
    )
    guide = pn.guides.BatchNoise(model, 8)
    (row,) = realized_noise(model, guide, x)
    standardized = torch.nn.functional.layer_norm(network[0](x), (6,)).flatten(0, 1).detach()
    mean, var = standardized.mean(0), standardized.var(0, correction=0)
    draws = guide.draw(model, 256, seed=0)
    # scale (x + shift) = mean + std scale ((x - mean) / std + what)
    what = (draws.shift + mean - mean / draws.scale) / var.sqrt()
    assert row.realized == pytest.approx(float(1 / what.var(0).mean()), rel=1e-4)
    assert row.shift == pytest.approx(float(1 / (draws.shift.var(0) / var).mean()), rel=1e-4)


def test_a_mean_turns_noise_of_the_scale_into_a_shift():
    x = torch.randn(300, 5)
    rows = []
    for offset in (0.0, 20.0):
        torch.manual_seed(0)
        network = mlp()
        with torch.no_grad():
            network[0].bias.fill_(0)
        model = model_of(network, pn.normalizers.Weight(), x, example_input=x[:2])
        rows.append(realized_noise(model, pn.guides.BatchNoise(model, 64), x + offset)[0])
    assert rows[1].shift == pytest.approx(rows[0].shift, rel=1e-3)  # the spread is the same
    assert rows[1].realized < rows[0].realized / 5


def test_points_have_none_and_small_banks_give_what_they_have():
    x = torch.randn(60, 5)
    model = model_of(mlp(), pn.normalizers.Batch(), x)
    for row in realized_noise(model, pn.guides.Point(model), x):
        assert row.nominal == row.realized == row.shift == math.inf
        assert row.log_scale_std == 0
    bank = pn.collect_bank(model, x, 5, 12)
    assert realized_noise(model, bank, x)[0].nominal > 3


def test_what_cannot_be_is_refused_and_nothing_stays():
    x = torch.randn(60, 5)
    model = model_of(mlp(), pn.normalizers.Batch(), x)
    with pytest.raises(OptionError, match="expected a posterior"):
        realized_noise(model, x, x)
    with pytest.raises(OptionError, match="realized_noise: num_samples must be at least 1"):
        realized_noise(model, pn.guides.Point(model), x, 0)
    with pytest.raises(DataError):
        realized_noise(model, pn.guides.Point(model), [])
    assert not any(layer._forward_pre_hooks for layer in model.network.layers)
    fresh = pn.NormalizationModel(pn.convert(mlp()), pn.likelihoods.Categorical(), 60)
    with pytest.raises(StatisticsError):
        realized_noise(fresh, pn.guides.Point(fresh), x)


def test_a_table_and_a_plot():
    found = RealizedNoises(
        [
            RealizedNoise("1", 16.0, 20.0, 20.0, 1.1, 0.2),
            RealizedNoise("<4>", 16.0, math.inf, 9.0, 1.0, 0.0),
        ]
    )
    assert repr(found) == "RealizedNoises(1=20, <4>=inf)"
    assert "&lt;4&gt;" in found._repr_html_()
    assert found.to_dataframe().loc["1", "realized"] == 20
    assert list(found.plot().lines[1].get_ydata()) == [20, math.inf]
