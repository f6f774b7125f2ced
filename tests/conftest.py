"""Every test starts from a clean Pyro, a fixed seed, and leaves the generators as it found them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

import jaxtyping
import matplotlib
import pyro
import pytest
import torch

from tests.simulated_device import SimulatedDevice

matplotlib.use("agg")
torch.set_num_threads(1)  # the networks are tiny; more threads only wait for each other


@pytest.fixture(autouse=True)
def _clean_slate() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.enable_validation(True)
    with torch.random.fork_rng():
        # UNLOCK_SEED=1 runs the suite with fresh seeds: statistical tests may then fail at their
        # stated rates.
        if "UNLOCK_SEED" not in os.environ:
            pyro.set_rng_seed(0)
        yield
    if giving := sys.modules.get("tests.giving"):  # not imported here: first comes the typing hook
        giving.take_all()
    pyro.clear_param_store()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the suite's type and shape checks off, to reach the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def simulated() -> Iterator[SimulatedDevice]:
    """A device that counts how often the host waits for it."""
    with SimulatedDevice() as device:
        yield device


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks cannot be made, as in a folder that is read only."""
    opened = os.open

    def refuse(path, *args, **options):
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
