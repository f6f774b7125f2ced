from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import pyronorm as pn
from pyronorm import devices
from pyronorm.devices import available_memory, move, read_together
from pyronorm.errors import OptionError, SizeError
from pyronorm.infer import log_likelihoods
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
    ("make", "says", "there"),
    [
        (lambda m: pn.guides.Flow(m), r"guides.Flow of 12 latents: needs at least .* GiB", 10),
        (lambda m: pn.guides.LowRank(m, 2), r"guides.LowRank of 12 latents", 10),
        (lambda m: pn.guides.LowRank.covariance(m.made), "factor and log_std", 10),
        (lambda m: pn.PyroGuide(AutoMultivariateNormal(m)).draw(m, 2), "has not been trained", 10),
        (lambda m: fit(m, AutoMultivariateNormal(m)), "AutoMultivariateNormal of 12 latents", 10),
        (lambda m: pn.collect_bank(m, m.x, 5, 8), "collect_bank of 5 batches", 10),
        (lambda m: pn.predict(m, m.made, m.x, 4), "LowRank, 4 draws of 6 channels", 150),
        (lambda m: m.prior.draws(m, 4), "BatchNoise, 4 draws of 6 channels", 150),
        (lambda m: pn.evaluate(m, m.made, (m.x, m.y), 3), "outputs of 3 draws for one", 150),
        (lambda m: pn.predict(m, m.made, m.x, 2), r"2 draws for 16 .* keep_samples=False", 150),
        (lambda m: log_likelihoods(m, m.made, (m.x, m.y), 2), "log_likelihoods of 16 exam", 120),
        (lambda m: pn.to_arviz(m, m.made, m.x, 2), "data of 16 examples for 2 draws", 120),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch, make, says, there):
    torch.manual_seed(0)
    network = pn.convert(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 13)))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=16)
    x = torch.randn(16, 3)
    pn.estimate_population_statistics(model, x)
    made = pn.guides.LowRank(model, 2)
    object.__setattr__(model, "x", x)
    object.__setattr__(model, "y", torch.zeros(16, dtype=torch.long))
    object.__setattr__(model, "made", made)
    monkeypatch.setattr(devices, "_SMALL", 0)
    monkeypatch.setattr(devices, "available_memory", lambda device: there)
    with pytest.raises((SizeError, OptionError), match=says) as caught:
        make(model)
    assert isinstance(caught.value, SizeError) or "trained" in says
    monkeypatch.setattr(devices, "available_memory", lambda device: 105)
    pn.predict(model, made, x, 2, keep_samples=False)


def fit(model, guide):
    pn.fit(model, guide, (model.x, model.y), epochs=1, progress=False)


def test_memory_that_can_be_had():
    assert 2**20 < available_memory(torch.device("cpu")) < 2**50
    assert available_memory(torch.device("meta")) is None


def test_parts_of_tensors_are_refused():
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = nn.Sequential(nn.Linear(3, 6), nn.GroupNorm(2, 6), nn.Linear(6, 2))
        model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), 16)
        guide, x = pn.guides.MeanField(model), torch.randn(16, 3)
        fully_shard(model.network.network[2], mesh=init_device_mesh("cpu", (1,)))
        for call in (
            lambda: pn.fit(model, guide, (x, x[:, 0].long()), epochs=1, progress=False),
            lambda: pn.predict(model, guide, x, 2),
        ):
            with pytest.raises(OptionError, match=r"2.weight is spread over several processes"):
                call()
    finally:
        dist.destroy_process_group()
