"""What runs a network over data does so in the precision of the caller's torch.autocast."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric

import pyronorm as pn
from pyronorm import guides
from tests.device.cases import NORMALIZERS, make_data, make_model
from tests.guides.cases import make_guide
from tests.guides.cases import make_model as make_small_model

ROUNDING = {"rtol": 0.05, "atol": 0.02}


def mixed(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_prediction(normalizer):
    torch.manual_seed(0)
    model = make_model(normalizer)
    guide = guides.BatchNoise(model, 32.0)
    x, y = make_data()
    seen = set()
    model.network.network[-1].register_forward_hook(lambda *call: seen.add(call[2].dtype))
    plain, rounded = [], []
    for found, enabled in ((plain, False), (rounded, True)):
        seen.clear()
        with mixed(enabled):
            prediction = pn.predict(model, guide, x, 6, seed=1)
            found += [prediction.mean, prediction.entropy]
            found += [torch.tensor([*pn.evaluate(model, guide, (x, y), 6, seed=1).values()])]
        assert seen == {torch.bfloat16 if enabled else torch.float32}
    assert all(value.dtype == torch.float32 for value in rounded)
    for expected, value in zip(plain[:2], rounded[:2], strict=True):
        torch.testing.assert_close(value, expected, **ROUNDING)
        assert not value.equal(expected)
    torch.testing.assert_close(rounded[2], plain[2], rtol=0.1, atol=0.1)


def test_statistics():
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = make_model()
        with mixed(enabled):
            pn.estimate_population_statistics(model, make_data()[0] + 1, batch_size=6)
            bank = pn.collect_bank(model, make_data()[0] + 1, batch_size=6, seed=0)
        found.append((*model.network.reference_statistics(), bank.mean, bank.var))
    for expected, value in zip(*found, strict=True):
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, **ROUNDING)
        assert not value.equal(expected)


TRAINED = ["Point", "MeanField", "LowRank", "Mixture", "Paired", "Flow", "EffectiveBatchSize"]


@pytest.mark.parametrize("case", [*TRAINED, "BatchNoise"])
def test_training_of_parameters_in_half_precision(case):
    losses = []
    for precision in ("32-true", "bf16-true"):
        torch.manual_seed(0)
        model = make_small_model()
        guide = make_guide(case, model)
        x, y = torch.randn(50, 5), torch.randint(3, (50,))
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        history = pn.fit(
            model, guide, (x, y), epochs=3, batch_size=10, seed=1, fabric=fabric, progress=False
        )
        losses.append(torch.tensor([epoch.loss for epoch in history.epochs]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.02)
