"""Prediction with the model on the device, the data there or not."""

from __future__ import annotations

import copy
from importlib import import_module
from itertools import cycle

import pyro
import pytest
import torch

import pyronorm as pn
from pyronorm.infer.predict import predictive_nll
from pyronorm.latents import folding
from tests.device.cases import LIKELIHOODS, NORMALIZERS, make_data, make_model
from tests.guides.cases import CASES, make_guide
from tests.simulated_device import DEVICE, MixedDevicesError

KINDS = [case for case in CASES if "." not in case]
PLACES = [("cpu", "cpu"), (DEVICE, DEVICE), ("cpu", DEVICE), (DEVICE, "cpu")]


def pair(guide: str, normalizer: str = "Batch", likelihood: str = "Categorical"):
    """A model and a guide, twice: on the CPU and on the device."""
    model = make_model(normalizer, likelihood=likelihood)
    here = model, make_guide(guide, model)
    there = copy.deepcopy(here)
    for module in there:
        module.to(DEVICE)
    return here, there


def check_prediction(here, there, x) -> None:
    found = []
    for model, guide in (here, there):
        pyro.set_rng_seed(3)
        found.append(pn.predict(model, guide, x, 6, batch_size=10))
    expected, prediction = found
    assert prediction.mean.device == DEVICE
    for name in ("mean", "variance", "entropy", "mutual_information"):
        actual = getattr(prediction, name).cpu()
        torch.testing.assert_close(actual, getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guide", KINDS)
def test_every_guide(simulated, guide):
    check_prediction(*pair(guide), make_data()[0])


@pytest.mark.parametrize(
    ("normalizer", "likelihood"), list(zip(NORMALIZERS, cycle(LIKELIHOODS), strict=False))
)
def test_every_normalizer_and_likelihood(simulated, normalizer, likelihood):
    check_prediction(*pair("MeanField", normalizer, likelihood), make_data()[0])


@pytest.mark.parametrize(("x_at", "y_at"), PLACES)
@pytest.mark.parametrize("likelihood", ["Categorical", "Normal"])
def test_scores_wherever_the_data_are(simulated, likelihood, x_at, y_at):
    (model, guide), (model_there, guide_there) = pair("MeanField", likelihood=likelihood)
    x, y = make_data(likelihood)
    moved = x.to(x_at), y.to(y_at)
    for score in (pn.evaluate, predictive_nll):
        pyro.set_rng_seed(3)
        expected = score(model, guide, (x, y), 6, batch_size=10)
        pyro.set_rng_seed(3)
        found = score(model_there, guide_there, moved, 6, batch_size=10)
        assert found == pytest.approx(expected, rel=1e-4)


def test_targets_left_where_they_are_would_be_seen(simulated, monkeypatch):
    """The fault that this room was built for: targets that do not follow their inputs."""
    _, (model, guide) = pair("MeanField")
    room = import_module("pyronorm.infer.batch")
    monkeypatch.setattr(room, "move", lambda y, device, dtype=None: y)
    for use in (predictive_nll, pn.to_arviz):
        with pytest.raises(MixedDevicesError):
            use(model, guide, make_data(), 4)


def test_a_call_has_as_many_rows_as_memory_lets_it(simulated, monkeypatch):
    _, (model, guide) = pair("MeanField")
    x, seen = make_data()[0][:10].to(DEVICE), []
    model.network.network[0].register_forward_hook(lambda *call: seen.append(len(call[2])))
    draws = guide.draw(model, 6, seed=0)
    expected = pn.predict(model, draws, x).mean.cpu()
    assert seen[-1] == 60  # all at once
    numbers = x[0].numel()  # no activation of an example has more
    for rows, calls in ((25, [20] * 3), (7, [10] * 6)):  # parts of fewer examples do not pay
        free = rows * numbers * folding._ALIVE * torch.float32.itemsize
        monkeypatch.setattr(folding, "available_memory", lambda device, free=free: free)
        seen.clear()
        torch.testing.assert_close(pn.predict(model, draws, x).mean.cpu(), expected)
        assert seen == calls  # the first example was tried alone before
