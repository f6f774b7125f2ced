from __future__ import annotations

import pytest
import torch

from pyronorm.devices import move, read_together
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
