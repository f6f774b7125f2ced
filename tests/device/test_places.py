"""Latents that are not where the input is are refused, with both places named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import DeviceError
from tests.device.cases import make_data, make_fabric, make_model
from tests.simulated_device import DEVICE


@pytest.mark.parametrize(("shift_at", "scale_at"), [("cpu", "cpu"), (DEVICE, "cpu")])
def test_latents_elsewhere_are_refused(simulated, shift_at, scale_at):
    network = make_model().to(DEVICE).network
    shift, scale = (torch.ones(network.space.num_channels) for _ in range(2))
    x = make_data()[0].to(DEVICE)
    message = rf"on meta, got shift on {shift_at} and scale on cpu.*guide.to\('meta'\)"
    with pytest.raises(DeviceError, match=message):
        network(x, shift.to(shift_at), scale.to(scale_at))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))

    def forward(self, a, b):
        return {"logits": self.layers(a + b.float()), "rest": a}


@pytest.mark.parametrize("at", ["cpu", DEVICE])
def test_inputs_of_any_structure_follow_the_network(simulated, at):
    network = pn.LatentNetwork(pn.convert(Named()), output="logits")
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 12)
    x = {"a": torch.randn(12, 3), "b": torch.randint(4, (12, 3))}
    y = torch.randint(2, (12,))
    expected = pn.predict(model, pn.guides.BatchNoise(model, 8.0), x, 5, seed=1)
    model.to(DEVICE)
    guide = pn.guides.BatchNoise(model, 8.0)
    moved = {name: value.to(at) for name, value in x.items()}
    found = pn.predict(model, guide, moved, 5, seed=1)
    torch.testing.assert_close(found.mean.cpu(), expected.mean)
    assert pn.evaluate(model, guide, (moved, y.to(at)), 5, seed=1).keys() >= {"nll", "accuracy"}
    pn.fit(model, guide, (moved, y.to(at)), epochs=1, fabric=make_fabric(), progress=False)
