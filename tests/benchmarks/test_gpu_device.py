"""The check on the simulated device: nothing in it mixes devices, and steps can be captured."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import pyronorm as pn
from benchmarks.gpu import command, comparison, correctness, end_to_end, speed, steps
from benchmarks.gpu.correctness import GUIDES, NORMALIZERS, PRIORS, small_network
from benchmarks.gpu.methods import METHODS
from benchmarks.gpu.objective import Objective
from benchmarks.gpu.run import Part, Settings
from tests.device.cases import make_fabric
from tests.simulated_device import DEVICE, SimulatedDevice

SLOW = pytest.mark.slow
WAITING = {"low-rank": 1, "flow": 1}  # a Cholesky decomposition is checked, a permutation copied


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Makes a part that runs on the device, without what it lacks: autocast and generators."""
    for module in (steps, correctness, end_to_end):
        monkeypatch.setattr(module, "mixed", lambda device: nullcontext())
    for module in (steps, end_to_end):
        monkeypatch.setattr(module, "make_fabric", lambda device, precision: make_fabric())
    monkeypatch.setattr(comparison, "own_generator", lambda device, seed: None)
    chosen = ("batch, point", "weight, mean-field")
    monkeypatch.setattr(comparison, "METHODS", {name: METHODS[name] for name in chosen})
    monkeypatch.setattr(correctness, "PRIORS", {"batch noise": PRIORS["batch noise"]})
    settings = Settings(DEVICE, tiny=True, compiled=False, output=tmp_path)
    return lambda name: Part(name, settings, seconds=300)


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=SLOW) for n in ("speed", "correctness")), "comparison"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # the cases' own
def test_all_cases(part, name):
    run, _ = command.PARTS[name]
    made = part(name)
    with SimulatedDevice():
        run(made)
    assert made.rows
    assert not made.failed


@pytest.mark.parametrize(
    ("guide", "normalizer"),
    [(guide, "group") for guide in GUIDES] + [("mean-field", name) for name in NORMALIZERS],
)
def test_steps_do_not_wait(guide, normalizer):
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    base = small_network()
    base(x)  # statistics, for the normalizer that takes them over
    network = pn.convert(base, NORMALIZERS[normalizer], example_input=x)
    pn.estimate_population_statistics(network, x)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 64).train()
    made = GUIDES[guide](model)
    with SimulatedDevice() as device:
        model.to(DEVICE), made.to(DEVICE)
        x, y, weight = x.to(DEVICE), y.to(DEVICE), torch.ones((), device=DEVICE)
        objective = Objective(model, made)
        objective(x, y, weight).backward()
        device.waits.clear()
        objective(x, y, weight).backward()
    eigen = int("eigen" in normalizer)
    assert sum(device.waits.values()) <= WAITING.get(guide, 0) + 4 * eigen


def test_the_speed_of_a_step_is_that_of_pn_fit(part):
    """The step that is timed on its own has the loss of the one in pn.Trainer."""
    settings = part("speed").settings
    cases = speed.Cases(
        Settings(torch.device("cpu"), tiny=True, output=settings.output), speed.TINY
    )
    model = cases.model("weight")
    model.num_data = 4
    guide = pn.guides.Point(model)
    x, y = cases.x[:4], cases.y[:4]
    loss = Objective(model.train(), guide)(x, y)
    trainer = pn.Trainer(model, guide, [(x, y)], fabric=make_cpu_fabric())
    assert trainer.epoch().loss == pytest.approx(loss.item(), rel=1e-5)


def make_cpu_fabric():
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)
