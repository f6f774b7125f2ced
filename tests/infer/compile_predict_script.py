"""Predict with a compiled network; run by test_precision.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import pyronorm as pn
from tests.device.cases import make_data, make_model

compiler, seen = torch.compile, []


def compile_fast(function, **options):
    seen.append(options)
    return compiler(function, **options | {"backend": "aot_eager"})


torch.compile = compile_fast
x, y = make_data()
for normalizer in sys.argv[1:] or ("Batch", "Group", "Weight"):
    torch.compiler.reset()
    model = make_model(normalizer)
    for samples_per_call, samples in ((4, 6), (1, 2), (None, 1)):  # a rest, alone, one
        model.network.samples_per_call = samples_per_call
        draws = pn.guides.BatchNoise(model, 32.0).draw(model, samples, seed=0)
        for precision in (None, "bf16-mixed"):
            found = []
            for compiled in (False, True):
                seen.clear()
                options = {"precision": precision, "compile": compiled}
                mean = pn.predict(model, draws, x, **options).mean
                nll = pn.evaluate(model, draws, (x, y), **options)["nll"]
                found.append(torch.cat([mean.flatten(), torch.tensor([nll])]))
                assert bool(seen) is compiled
            rtol, atol = (1e-5, 1e-6) if precision is None else (0.05, 0.02)
            torch.testing.assert_close(*found, rtol=rtol, atol=atol)
    print(normalizer)
