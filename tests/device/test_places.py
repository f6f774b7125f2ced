"""Latents that are not where the input is are refused, with both places named."""

from __future__ import annotations

import pytest
import torch

from pyronorm.errors import DeviceError
from tests.device.cases import make_data, make_model
from tests.simulated_device import DEVICE


@pytest.mark.parametrize(("shift_at", "scale_at"), [("cpu", "cpu"), (DEVICE, "cpu")])
def test_latents_elsewhere_are_refused(simulated, shift_at, scale_at):
    network = make_model().to(DEVICE).network
    shift, scale = (torch.ones(network.space.num_channels) for _ in range(2))
    x = make_data()[0].to(DEVICE)
    message = rf"on meta, got shift on {shift_at} and scale on cpu.*guide.to\('meta'\)"
    with pytest.raises(DeviceError, match=message):
        network(x, shift.to(shift_at), scale.to(scale_at))
