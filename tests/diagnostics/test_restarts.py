"""R-hat of fits that agree, that disagree, and by hand."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr

from pyronorm import NormalizationModel, convert, fit, to_arviz, trust_statistics
from pyronorm.diagnostics import compare_restarts
from pyronorm.errors import OptionError
from pyronorm.guides import MeanField, Point
from pyronorm.likelihoods import Categorical
from pyronorm.priors import HierarchicalBatchNoise
from tests.guides.cases import make_model
from tests.nets import mlp

HALVES = (slice(0, 20), slice(20, 40))


def exports(guides, model, draws: int = 400):
    return [to_arviz(model, guide, None, draws, seed=k) for k, guide in enumerate(guides)]


def test_equal_fits_agree_and_shifted_ones_do_not():
    model = make_model()
    guides = [MeanField(model) for _ in range(3)]
    found = compare_restarts(exports(guides, model))
    assert found.attrs["max_rhat"] < 1.02
    with torch.no_grad():
        guides[1].shift_loc[4] += 0.3  # three standard deviations
    idatas = exports(guides, model)
    found = compare_restarts(idatas)
    rhat = found["shift"].sel(statistic="rhat")
    assert rhat.sizes == {"channel": 10}
    assert int(rhat.values.argmax()) == 4
    assert found.attrs["max_rhat"] == float(rhat.max()) > 1.5
    assert float(np.delete(rhat.values, 4).max()) < 1.02
    assert (found["scale"].sel(statistic="rhat") < 1.02).all()
    draws = np.stack([i["posterior"]["shift"].values[0, :, 4] for i in idatas])
    assert float(rhat[4]) == pytest.approx(float(az.rhat(draws)))
    one = found["shift"].isel(channel=4)
    assert float(one.sel(statistic="sd")) == pytest.approx(
        math.sqrt(draws.var(1, ddof=1).mean()), rel=1e-4
    )
    assert float(one.sel(statistic="sd_between")) == pytest.approx(
        draws.mean(1).std(ddof=1), rel=1e-4
    )
    assert list(found["channel"].values[5:7]) == ["1[5]", "4[0]"]


def test_chains_of_an_export_are_one_fit():
    model = make_model()
    one, two = exports([MeanField(model), MeanField(model)], model, 40)
    values = one["posterior"]["shift"]
    halves = [values.isel(draw=part).assign_coords(draw=range(20)) for part in HALVES]
    split = {"posterior": xr.concat(halves, dim="chain").to_dataset()}
    found = compare_restarts([split, two], ["shift"])
    expected = compare_restarts([one, two], ["shift"])
    np.testing.assert_allclose(found["shift"].values, expected["shift"].values)


def test_restarts_of_training_agree_on_latents_and_batch_size():
    network = convert(mlp(norm=lambda c: torch.nn.GroupNorm(2, c))).requires_grad_(False)
    model = NormalizationModel(network, Categorical(), 60, HierarchicalBatchNoise(32.0))
    x = torch.randn(60, 5)
    guides = []
    for k in range(2):
        guides.append(MeanField(model, init_std=0.05 * 3**k))
        fit(model, guides[-1], (x, (x[:, 0] > 0).long()), epochs=1, progress=False, seed=k)
    found = compare_restarts(exports(guides, model, 60), ["scale", "batch_size"])
    assert found["batch_size"].sizes == {"statistic": 3, "batch_size_group": 2}
    assert found.attrs["max_rhat"] > 1.01  # one epoch is too few: widths still differ by three


def test_refusals():
    model = make_model()
    one, two = exports([MeanField(model), MeanField(model)], model, 8)
    with pytest.raises(OptionError, match="at least two fits, got 1"):
        compare_restarts([one])
    with pytest.raises(OptionError, match=r"fit 0 has no variable 'n'; it has \['shift', 'scale'"):
        compare_restarts([one, two], ["n"])
    with pytest.raises(OptionError, match=r"'shift' of fit 1 has .*: 9.* where fit 0 has .*: 8"):
        compare_restarts([one, to_arviz(model, MeanField(model), None, 9)])
    other = NormalizationModel(convert(torch.nn.Sequential(*mlp(), mlp(3, 6, 3))), Categorical(), 9)
    trust_statistics(other)
    with pytest.raises(OptionError, match="other coordinates"):
        compare_restarts([one, to_arviz(other.eval(), MeanField(other), None, 8)])
    with pytest.raises(OptionError, match="at least 4 draws"):
        compare_restarts([to_arviz(model, MeanField(model), None, 3) for _ in range(2)])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_constant_has_no_rhat():
    model = make_model()
    found = compare_restarts(exports([Point(model), Point(model)], model, 20))
    assert math.isnan(found.attrs["max_rhat"])
