"""Nothing is left behind: memory stays flat over thousands of steps and predictions."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import pyronorm as pn

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def build() -> tuple[pn.NormalizationModel, pn.guides.MeanField]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), num_data=32)
    pn.estimate_population_statistics(model, X)
    return model, pn.guides.MeanField(model)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_ten_thousand_steps_and_predictions():
    script = Path(__file__).with_name("memory_script.py")
    run = subprocess.run(
        [sys.executable, script, "10000"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_nothing_keeps_a_model():
    model, guide = build()
    pn.fit(model, guide, (X, Y), epochs=1, progress=False)
    pn.predict(model, guide, X, 3)
    known = [weakref.ref(model.network.network), weakref.ref(model), weakref.ref(guide)]
    del model, guide
    gc.collect()
    assert [ref() for ref in known] == [None, None, None]
