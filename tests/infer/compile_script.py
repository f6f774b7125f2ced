"""Train with a compiled objective, in one graph; run by test_objective.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.distributions.kl import _KL_MEMOIZE

import pyronorm as pn
from tests.guides.cases import make_guide, make_model

compiler, seen = torch.compile, []


def compile_exactly(function, **options):
    """With the random numbers of the eager mode, which Inductor does not have."""
    seen.append(options)
    return compiler(function, **options | {"backend": "aot_eager", "mode": None})


torch.compile = compile_exactly
x, y = torch.randn(50, 5), torch.randint(3, (50,))
CASES = sys.argv[1:] or ("Point", "MeanField", "Paired", "LowRank", "EffectiveBatchSize", "Flow")
for case in CASES:
    found = []
    torch.compiler.reset()
    _KL_MEMOIZE.clear()  # as in a process that goes on from a checkpoint
    for compiled in (True, False):
        torch.manual_seed(0)
        model = make_model(prior=pn.priors.BatchNoise(16.0))
        history = pn.fit(
            model,
            make_guide(case, model),
            (x, y),
            epochs=3,
            batch_size=20,  # and a rest of 10
            seed=1,
            progress=False,
            objective=pn.Objective(kl_weight=lambda epoch: min(1.0, (epoch + 1) / 3)),
            optimization=pn.Optimization(compile=compiled),
        )
        found.append(torch.tensor([*history.losses]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    print(case)
assert len(seen) == len(CASES)
assert all(options == {"fullgraph": True, "mode": None} for options in seen)
