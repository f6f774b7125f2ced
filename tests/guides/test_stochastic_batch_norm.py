from __future__ import annotations

import dataclasses

import pytest
import torch
from pyro import poutine

from pyronorm.errors import OptionError
from pyronorm.guides import StochasticBatchNorm
from pyronorm.infer import as_posterior
from tests.guides.cases import make_bank, make_model


def test_batch_means_are_normal_and_variances_log_normal_with_the_moments_of_the_rows():
    model = make_model()
    bank = make_bank(model)
    mean, std = model.network.reference_statistics()
    draws = as_posterior(StochasticBatchNorm(model, bank), "test").draw(model, 20_000)
    batch_mean = mean - std * draws.shift
    log_var = 2 * (std / draws.scale).log()
    rows = (bank.var + bank.eps).log()
    error = 20_000**-0.5
    for drawn, target in ((batch_mean, bank.mean), (log_var, rows)):
        # 5 standard errors for each of 10 channels
        assert ((drawn.mean(0) - target.mean(0)).abs() < 5 * error * target.std(0)).all()
        assert ((drawn.std(0) / target.std(0) - 1).abs() < 5 * error).all()


def test_channels_are_independent_and_nothing_is_learned():
    model = make_model()
    guide = StochasticBatchNorm(model, make_bank(model))
    draws = as_posterior(guide, "test").draw(model, 20_000)
    correlation = torch.cat([draws.shift, draws.scale], -1).T.corrcoef() - torch.eye(20)
    assert correlation.abs().max() < 5 * 20_000**-0.5
    assert not list(guide.parameters())


def test_layers_without_batch_statistics_stay_neutral():
    model = make_model()
    bank = make_bank(model)
    mean, var = bank.mean.clone(), bank.var.clone()
    mean[:, 3:], var[:, 3:] = torch.nan, torch.nan
    guide = StochasticBatchNorm(model, dataclasses.replace(bank, mean=mean, var=var))
    values = guide()
    torch.testing.assert_close(values["shift"][3:], torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(values["scale"][3:], torch.ones(7), atol=1e-5, rtol=0)
    trace = poutine.trace(guide).get_trace()
    assert torch.isfinite(trace.log_prob_sum())


def test_one_row_has_no_spread():
    model = make_model()
    with pytest.raises(OptionError, match="at least 2 rows, got 1"):
        StochasticBatchNorm(model, make_bank(model, rows=1))
