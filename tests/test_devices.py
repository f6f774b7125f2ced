from __future__ import annotations

import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn

import pyronorm as pn
from pyronorm import devices
from pyronorm.devices import available_memory, move, read_together
from pyronorm.errors import OptionError, SizeError
from tests.simulated_device import DEVICE


def test_what_is_there_stays_the_object_it_is():
    x = torch.randn(3)
    assert move(x, torch.device("cpu")) is x
    assert move(x, torch.device("cpu"), torch.float64).dtype == torch.float64


@pytest.mark.parametrize(("start", "end", "waits"), [("cpu", DEVICE, 0), (DEVICE, "cpu", 1)])
def test_only_copies_to_the_host_wait(simulated, start, end, waits):
    x = torch.arange(3.0)
    there = x.to(start)
    simulated.waits.clear()
    moved = move(there, torch.device(end), torch.float64)
    assert simulated.waits.total() == waits
    assert moved.device == torch.device(end)
    torch.testing.assert_close(moved.cpu(), x.double())


def test_reading_together_waits_once(simulated):
    values = [torch.tensor(True, device=DEVICE), torch.tensor(False, device=DEVICE)]
    simulated.waits.clear()
    assert read_together(values) == [1, 0]
    assert simulated.waits.total() == 1
    assert read_together([]) == []


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: pn.guides.Flow(m), r"guides.Flow of 12 latents: needs at least .* GiB"),
        (lambda m: pn.guides.LowRank(m, 2), r"guides.LowRank of 12 latents"),
        (lambda m: pn.guides.LowRank.covariance(m.made), "factor and log_std"),
        (lambda m: pn.PyroGuide(AutoMultivariateNormal(m)).draw(m, 2), "has not been trained"),
        (lambda m: fit(m, AutoMultivariateNormal(m)), "AutoMultivariateNormal of 12 latents"),
        (lambda m: pn.collect_bank(m, m.x, 5, 8), "collect_bank of 5 batches"),
        (
            lambda m: pn.predict(m, m.made, m.x, 3),
            r"3 draws for 16 examples: .* keep_samples=False",
        ),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch, make, says):
    torch.manual_seed(0)
    network = pn.convert(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=16)
    x = torch.randn(16, 3)
    pn.estimate_population_statistics(model, x)
    made = pn.guides.LowRank(model, 2)
    object.__setattr__(model, "x", x)
    object.__setattr__(model, "made", made)
    monkeypatch.setattr(devices, "_SMALL", 0)
    monkeypatch.setattr(devices, "available_memory", lambda device: 10)
    with pytest.raises((SizeError, OptionError), match=says) as caught:
        make(model)
    assert isinstance(caught.value, SizeError) or "trained" in says
    pn.predict(model, made, x, 3, keep_samples=False)


def fit(model, guide):
    pn.fit(model, guide, (model.x, torch.zeros(16, dtype=torch.long)), epochs=1, progress=False)


def test_memory_that_can_be_had():
    assert 2**20 < available_memory(torch.device("cpu")) < 2**50
    assert available_memory(torch.device("meta")) is None
