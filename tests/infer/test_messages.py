from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import DataError, PyronormError, ShapeError
from pyronorm.infer.messages import plain_messages


def make_model() -> pn.NormalizationModel:
    network = pn.convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    pn.estimate_population_statistics(network, torch.randn(20, 3))
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), 20)


X, Y = torch.randn(20, 3), torch.arange(20) % 2


@pytest.mark.parametrize(
    ("y", "error", "start"),
    [
        (Y + 7, DataError, "Categorical: y has values outside of the support"),
        (Y[:, None], ShapeError, "Categorical: "),
    ],
)
@pytest.mark.parametrize("run", ["fit", "nuts"])
def test_refusals_inside_of_pyro_have_no_table(run, y, error, start):
    model = make_model()
    with pytest.raises(error, match=start) as found:
        if run == "fit":
            pn.fit(model, pn.guides.MeanField(model), (X, y), epochs=1, progress=False)
        else:
            pn.run_nuts(model, (X, y), 4, 1, 1, progress=False)
    assert "\n" not in str(found.value)


def test_inputs_that_are_not_finite_are_named_before_sampling():
    x = X.clone()
    x[3, 1] = torch.nan
    with pytest.raises(DataError, match="run_nuts: the data have inputs that are not finite"):
        pn.run_nuts(make_model(), (x, Y), 4, 1, 1, progress=False)


def test_other_errors_pass():
    with pytest.raises(PyronormError, match=r"^two\nlines$"), plain_messages():
        raise PyronormError("two\nlines")
    with pytest.raises(ValueError, match="Trace Shapes"), plain_messages():
        raise ValueError("of others\n Trace Shapes: 3")


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's, before the refusal
def test_weights_that_are_not_finite_are_named():
    model = make_model()
    guide = pn.guides.MeanField(model)
    with torch.no_grad():
        model.network.network[2].weight[0, 1] = torch.nan
    with pytest.raises(DataError, match=r"network\.2\.weight has values that are not finite"):
        pn.fit(model, guide, (X, Y), epochs=1, progress=False)
    model = make_model()
    with torch.no_grad():
        model.network.network[2].bias[0] = torch.nan
    pn.trust_statistics(model.network)
    with pytest.raises(DataError, match=r"2\.bias has values that are not finite"):
        pn.predict(model, pn.guides.MeanField(model), X, 2)
