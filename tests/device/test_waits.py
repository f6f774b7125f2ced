"""How often the host waits for the device: a table that may only get shorter.

What a step, a batch or a row costs is what two more of them add to a call, so that what a call does
once is apart. A plain training loop of PyTorch that reads no loss has 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

import pyronorm as pn
from pyronorm.infer.predict import predictive_nll
from tests.device.cases import make_data, make_fabric, make_model
from tests.guides.cases import make_guide
from tests.simulated_device import DEVICE

BATCH = 6


def data(batches: int, at=DEVICE, likelihood: str = "Categorical"):
    x, y = make_data(likelihood, BATCH * batches)
    return x.to(at), y.to(at)


def step(guide: str, at=DEVICE, likelihood: str = "Categorical", epoch: int = 2, **options):
    """Steps of an epoch; in the first one targets are checked, and read at its end."""

    def prepare(batches: int) -> Callable[[], object]:
        model = make_model(likelihood=likelihood)
        model.num_data = BATCH * batches
        posterior = make_guide(guide, model)
        train = data(batches, at, likelihood)
        options_now = {"batch_size": BATCH, "fabric": make_fabric(), **options}
        trainer = pn.Trainer(model, posterior, train, **options_now)
        for _ in range(epoch - 1):
            trainer.epoch()
        return trainer.epoch

    return prepare


def batch(call: Callable[..., object], at=DEVICE):
    """Batches of what runs a model over data."""

    def prepare(batches: int) -> Callable[[], object]:
        model = make_model().to(DEVICE)
        guide = make_guide("MeanField", model)
        train = data(batches, at)
        return lambda: call(model, guide, train)

    return prepare


def predict(model, guide, data):
    pn.predict(model, guide, data, 5, batch_size=BATCH)


def evaluate(model, guide, data):
    pn.evaluate(model, guide, data, 5, batch_size=BATCH)


def validate(model, guide, data):
    predictive_nll(model, guide, data, 5, batch_size=BATCH)


def collect_bank(model, guide, data):
    pn.collect_bank(model, data[0], batch_size=BATCH)


def estimate(model, guide, data):
    pn.estimate_population_statistics(model, data[0], batch_size=BATCH)


clipped = pn.Optimization(gradient_clip_norm=1.0)

# In a batch of validation and evaluate: are the targets possible?
# In one of evaluate also: which of them are missing, by masks?
WAITS: dict[str, tuple[Callable[[int], Callable[[], object]], float]] = {
    "step, Point": (step("Point"), 0),
    "step, EffectiveBatchSize": (step("EffectiveBatchSize"), 0),
    "step, MeanField": (step("MeanField"), 0),
    "step, LowRank": (step("LowRank"), 0),
    "step, Paired": (step("Paired"), 0),
    "step, BatchNoise": (step("BatchNoise"), 0),
    "step, Mixture": (step("Mixture"), 0),
    "step, Flow": (step("Flow"), 0),
    "step, first epoch": (step("MeanField", epoch=1), 0),
    "step, Normal": (step("MeanField", likelihood="Normal"), 0),
    "step, clipping": (step("MeanField", optimization=clipped), 0),
    "step, data on the CPU": (step("MeanField", "cpu"), 0),
    "predict": (batch(predict), 0),
    "predict, data on the CPU": (batch(predict, "cpu"), 0),
    "evaluate": (batch(evaluate), 4),
    "validation": (batch(validate), 1),
    "collect_bank": (batch(collect_bank), 0),
    "collect_bank, data on the CPU": (batch(collect_bank, "cpu"), 0),
    "population": (batch(estimate), 0),
    "population, data on the CPU": (batch(estimate, "cpu"), 0),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits(simulated, name):
    prepare, known = WAITS[name]
    found: list[Counter[tuple[str, str]]] = []
    for number in (2, 4):
        torch.manual_seed(0)
        call = prepare(number)
        simulated.waits.clear()
        call()
        found.append(simulated.waits.copy())
    fewer, more = found
    each = (more.total() - fewer.total()) / 2
    more.subtract(fewer)
    where = {place: number / 2 for place, number in more.items() if number}
    assert each <= known, f"{name}: the host waits {each:g} times instead of {known}: {where}"
    assert each == known, f"{name} has become better: lower its number to {each:g}, {where}"
