"""A run of NUTS, in a process of its own that may be killed: folder, output, seconds per step."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import pyronorm as pn
from pyronorm.infer.latent_nuts import LatentNUTS
from pyronorm.latents import Draws
from tests.guides.cases import make_model

OPTIONS = {
    "num_samples": 24,
    "warmup": 6,
    "num_chains": 2,
    "max_tree_depth": 2,
    "seed": 1,
    "progress": False,
}
NUM_DATA = 30


def model_and_data(prior: pn.priors.Prior | None = None):
    """The same at each call."""
    torch.manual_seed(7)
    model = make_model(prior=prior)
    model.num_data = NUM_DATA
    return model, (torch.randn(NUM_DATA, 5), torch.randint(3, (NUM_DATA,)))


def same(first: Draws, second: Draws) -> bool:
    """Bit by bit."""
    return (
        first.num_chains == second.num_chains
        and torch.equal(first.shift, second.shift)
        and torch.equal(first.scale, second.scale)
        and first.stats.keys() == second.stats.keys()
        and all(torch.equal(first.stats[name], second.stats[name]) for name in first.stats)
    )


def main(folder: str | None, output: Path, seconds: float = 0.0) -> None:
    """Sample more than a killed process gets done, and save the draws."""
    sample = LatentNUTS.sample

    def slowly(self, params):
        time.sleep(seconds)
        return sample(self, params)

    LatentNUTS.sample = slowly
    try:
        model, data = model_and_data()
        pn.run_nuts(model, data, **{**OPTIONS, "num_samples": 150, "folder": folder}).save(output)
    finally:
        LatentNUTS.sample = sample


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
