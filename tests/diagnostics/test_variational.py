"""Pareto k of posteriors whose ratios have a known tail, under either ArviZ."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyronorm import NormalizationModel, convert, to_arviz
from pyronorm.diagnostics import ParetoK, importance_summary, pareto_k
from pyronorm.errors import NoDensityError, OptionError
from pyronorm.likelihoods import Categorical
from tests.guides.cases import make_bank, make_guide, make_model

OLD = az.__version__.startswith("0.")
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def exported(z: np.ndarray, lp: np.ndarray, log_q: np.ndarray):
    """What to_arviz would write for these draws, shape (chain, draw, channel)."""
    groups = {
        "posterior": {"shift": z},
        "sample_stats": {"lp": lp, "log_q": log_q, "log_prior": np.zeros_like(lp)},
    }
    return az.from_dict(**groups) if OLD else az.from_dict(groups)


def normal_log_density(z: np.ndarray, sd: float) -> np.ndarray:
    return (-0.5 * (z / sd) ** 2 - np.log(sd)).sum(-1)


def exponential_ratios(k: float, draws: int = 20_000):
    """log ratio = k times a standard exponential variable: a Pareto tail of shape k, exactly."""
    lp = k * np.random.default_rng(1).exponential(size=(1, draws))
    return exported(np.zeros((1, draws, 2)), lp, np.zeros_like(lp))


@pytest.mark.parametrize("k", [0.3, 0.6, 1.1])
def test_k_is_the_shape_of_the_tail(k):
    """424 draws in the tail: the fit's standard error is (1 + k)/sqrt(424), 4 of them allowed."""
    found = pareto_k(exponential_ratios(k))
    assert abs(found.k - k) < 4 * (1 + k) / math.sqrt(424)
    assert found.reliable == (k < 0.7)
    assert found.undefined == ""


def test_light_tails_upwards_though_heavy_ones_downwards():
    """A guide wider than the posterior is safe: its ratios are bounded."""
    draws = 4000
    wide = 2 * np.random.default_rng(2).normal(size=(1, draws, 1))
    found = pareto_k(exported(wide, normal_log_density(wide, 1.0), normal_log_density(wide, 2.0)))
    assert found.k < 0.2
    narrow = wide / 4
    found = pareto_k(
        exported(narrow, normal_log_density(narrow, 1.0), normal_log_density(narrow, 0.5))
    )
    # Ratios exp(1.5 z^2) with sd 0.5: a tail of shape 1 - sd^2 = 0.75, slowly reached.
    assert found.k > 0.5


def test_corrected_summaries_are_the_posteriors():
    """q is N(0, 1.5^2), p is N(0.4, 1): 5 standard errors of importance sampling at 4,000 draws."""
    z = 1.5 * np.random.default_rng(3).normal(size=(2, 2000, 1))
    idata = exported(z, normal_log_density(z - 0.4, 1.0) + 7.0, normal_log_density(z, 1.5))
    found = pareto_k(idata)
    assert found.reliable
    assert np.exp(found.log_weights).sum() == pytest.approx(1)
    assert found.num_draws == 4000
    assert found.effective_draws == pytest.approx(1 / np.exp(2 * found.log_weights).sum())
    summary = importance_summary(idata, ["shift"])["shift"]
    error = 5 / math.sqrt(found.effective_draws)
    values = {
        str(s): float(summary.sel(statistic=s).values[0]) for s in summary["statistic"].values
    }
    assert values["mean"] == pytest.approx(z.mean())
    assert values["sd"] == pytest.approx(z.std())
    assert abs(values["corrected_mean"] - 0.4) < error
    assert abs(values["corrected_sd"] - 1.0) < error
    assert importance_summary(idata, ["shift"]).attrs["pareto_k"] == found.k


@pytest.mark.parametrize("draws", [100, 1000, 10_000])
def test_threshold_rises_with_the_number_of_draws(draws):
    expected = {100: 0.5, 1000: 1 - 1 / 3, 10_000: 0.7}[draws]
    for k, reliable in ((expected - 0.01, True), (expected + 0.01, False), (math.nan, False)):
        found = ParetoK(k, draws, None, "")
        assert found.threshold == pytest.approx(expected)
        assert found.reliable is reliable


def test_guides_exported_by_to_arviz():
    model = make_model()
    x, y = torch.randn(50, 5), torch.randint(3, (50,))
    guide = AutoNormal(model)
    guide(x, y)
    for posterior in (make_guide("MeanField", model), make_guide("LowRank", model), guide):
        idata = to_arviz(model, posterior, (x, y), 60, include_inputs=False, seed=1)
        found = pareto_k(idata)
        stats = idata["sample_stats"]
        assert math.isfinite(found.k)
        ratios = (stats["lp"] - stats["log_q"]).values.ravel()
        # Smoothing keeps the order, and leaves all but the tail as it is.
        assert (np.argsort(found.log_weights) == np.argsort(ratios)).all()
        body = np.argsort(ratios)[:40]
        apart = found.log_weights[body] - ratios[body]
        assert np.ptp(apart) < 1e-4
    summary = importance_summary(idata)
    assert set(summary.data_vars) == {"shift", "scale"}
    assert summary["scale"].sizes == {"statistic": 4, "channel": 10}


def test_undefined_says_why():
    model = make_model()
    data = torch.randn(8, 5), torch.randint(3, (8,))

    def reason(posterior, given=data) -> str:
        idata = to_arviz(model, posterior, given, 40)
        found = pareto_k(idata)
        assert math.isnan(found.k)
        assert math.isnan(found.effective_draws)
        assert not found.reliable
        assert found.log_weights is None
        with pytest.raises(NoDensityError, match="there are no weights"):
            importance_summary(idata)
        return found.undefined

    assert "StatisticsBank has no density log q" in reason(make_bank(model))
    assert "MonteCarloBatchNorm has no density log q" in reason(
        make_guide("MonteCarloBatchNorm", model)
    )
    assert "Point has no density log q" in reason(make_guide("Point", model))
    assert "the export has no lp" in reason(make_guide("MeanField", model), None)
    assert "the export has no lp" in reason(make_guide("MeanField", model), data[0])


def test_undefined_for_mcmc():
    model = NormalizationModel(
        convert(nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2))), Categorical(), 20
    )
    data = torch.randn(20, 3), torch.randint(2, (20,))
    mcmc = MCMC(NUTS(model), num_samples=30, warmup_steps=5, disable_progbar=True)
    mcmc.run(*data)
    found = pareto_k(to_arviz(model, mcmc, data, 30))
    assert math.isnan(found.k)
    assert "MCMC" in found.undefined


def test_undefined_where_ratios_are_not_finite_and_other_errors():
    lp = np.zeros((1, 30))
    lp[0, 3] = -math.inf
    found = pareto_k(exported(np.zeros((1, 30, 2)), lp, np.zeros_like(lp)))
    assert found.undefined == "lp or log q is not finite for some draws"
    with pytest.raises(OptionError, match="at least 25 draws, got 24"):
        pareto_k(exponential_ratios(0.1, 24))
    with pytest.raises(OptionError, match="no group sample_stats"):
        pareto_k({})
    with pytest.raises(OptionError, match=r"no variable 'bias'; there are \['shift'\]"):
        importance_summary(exponential_ratios(0.1, 30), ["bias"])
