"""``precision`` and ``compile`` of what runs a network without training it.

Oracles: the caller's torch.autocast, and the network as it is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import OptionError
from pyronorm.infer.precision import running_in
from tests.device.cases import make_data, make_model

ROUNDING = {"rtol": 0.05, "atol": 0.02}
X, Y = make_data()


def draws(model):
    return pn.guides.BatchNoise(model, 32.0).draw(model, 5, seed=0)


CALLS = {
    "predict": lambda model, **options: pn.predict(model, draws(model), X, **options).mean,
    "evaluate": lambda model, **options: torch.tensor(
        pn.evaluate(model, draws(model), (X, Y), calibrate_on=(X, Y), **options)["nll"]
    ),
    "collect_bank": lambda model, **options: (
        pn.collect_bank(model, X, batch_size=6, seed=0, **options).mean
    ),
    "refresh_draws": lambda model, **options: (
        pn.refresh_draws(model, draws(model), X, batch_size=6, seed=0, **options).shift
    ),
    "estimate_population_statistics": lambda model, **options: (
        pn.estimate_population_statistics(model, X, batch_size=6, **options),
        model.network.reference_statistics()[0],
    )[1],
}


@pytest.mark.parametrize("call", CALLS)
def test_the_words_are_those_of_autocast(call):
    torch.manual_seed(0)
    model = make_model()
    seen = set()
    model.network.network[0].register_forward_hook(lambda *args: seen.add(args[2].dtype))
    found = {}
    for precision, outer in ((None, False), ("bf16-mixed", False), (None, True), ("32-true", True)):
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            found[precision, outer] = CALLS[call](model, precision=precision)
        half = precision == "bf16-mixed" or (precision is None and outer)
        assert seen == {torch.bfloat16 if half else torch.float32}
    plain, rounded = found[None, False], found["bf16-mixed", False]
    assert rounded.dtype == plain.dtype == torch.float32
    assert not rounded.equal(plain)
    torch.testing.assert_close(rounded, plain, **ROUNDING)
    torch.testing.assert_close(found["32-true", True], plain, **ROUNDING)
    torch.testing.assert_close(rounded, found[None, True], **ROUNDING)


@pytest.mark.parametrize(
    ("precision", "device", "words"),
    [
        (
            "bf16",
            "cpu",
            "must be '32-true', 'bf16-mixed' or, on a GPU, '16-mixed', got 'bf16'",
        ),
        ("bf16-true", "cpu", "convert the model"),
        ("16-mixed", "cpu", "is for a GPU"),
        ("bf16-mixed", "meta", "no mixed precision on meta"),
    ],
)
def test_others_are_refused(precision, device, words):
    with pytest.raises(OptionError, match=words):
        running_in("predict", precision, torch.device(device))


@pytest.mark.parametrize("call", CALLS)
def test_before_anything_happens(call):
    with pytest.raises(OptionError, match=f"{call}: precision must be"):
        CALLS[call](make_model(), precision="half")


def test_what_is_compiled_are_calls_of_the_network(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function: calls.append(function) or function)
    model = make_model()
    expected = pn.predict(model, draws(model), X).mean
    assert not calls
    assert pn.predict(model, draws(model), X, compile=True).mean.equal(expected)
    assert calls
    calls.clear()
    pn.predict(model, pn.guides.Point(model), X, compile=True)  # a single draw
    assert calls


@pytest.mark.slow
def test_compiled_it_is_the_same():
    # Dynamo cannot see through the run-time type checks of this process.
    script = Path(__file__).with_name("compile_predict_script.py")
    subprocess.run([sys.executable, str(script)], check=True)
