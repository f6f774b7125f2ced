"""Every test starts from a clean Pyro, a fixed seed, and leaves the generators as it found them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("agg")
torch.set_num_threads(min(2, os.cpu_count() or 1))


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
    pyro.clear_param_store()
