"""Training takes the closed form where there is one, and Pyro's ELBO by itself where not."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import nn

import pyronorm as pn
from pyronorm.errors import DataError, OptionError
from pyronorm.infer.objective import NegativeELBO
from tests.device.cases import make_data, make_fabric
from tests.device.cases import make_model as make_conv_model
from tests.guides.cases import make_guide, make_model
from tests.simulated_device import DEVICE

COMPILED = pn.Optimization(compile=True)


class OwnForward(pn.guides.MeanField):
    """A guide whose sites are not those of its law alone."""

    def forward(self, *args, **kwargs):
        pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        return super().forward(*args, **kwargs)


class OwnSite(nn.Module):
    """A network with a weight that has a prior; every second call of it, if ``rare``."""

    def __init__(self, rare: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
        self.rare, self.calls = rare, 0

    def forward(self, x):
        self.calls += 1
        if self.rare and self.calls < 3:
            return self.body(x)
        return self.body(x) * pyro.sample("gain", dist.LogNormal(0.0, 0.1))


def data(number: int = 50):
    return torch.randn(number, 5), torch.randint(3, (number,))


def trained(monkeypatch, pyros: bool, make, **options):
    """Losses and parameters of a short training."""
    if pyros:
        monkeypatch.setattr("pyronorm.infer.objective.has_closed_form", lambda *_: False)
    torch.manual_seed(0)
    model = make().double()  # a bias before batch normalization has a gradient of rounding alone
    guide = options.pop("guide", pn.guides.MeanField)(model)
    train = data()
    history = pn.fit(
        model, guide, train, epochs=2, batch_size=20, seed=1, progress=False, **options
    )
    monkeypatch.undo()
    return [*history.losses], [p.detach() for p in model.parameters()]


def with_own_site(rare: bool = False):
    network = pn.convert(OwnSite(rare))
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), 50)


@pytest.mark.parametrize("options", [{}, {"guide": OwnForward}])
def test_training_is_that_with_pyro(monkeypatch, options):
    ours, theirs = (
        trained(monkeypatch, pyros, make_model, **dict(options)) for pyros in (False, True)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize(
    ("make", "options", "by_pyro"),
    [
        (make_model, {}, False),
        (with_own_site, {}, True),
        (lambda: with_own_site(rare=True), {}, True),
        (make_model, {"guide": OwnForward}, True),
        (make_model, {"objective": pn.Objective(elbo=Trace_ELBO())}, True),
    ],
)
def test_what_the_laws_do_not_say_is_pyros(monkeypatch, make, options, by_pyro):
    used = []
    whole = NegativeELBO._by_pyro
    monkeypatch.setattr(NegativeELBO, "_by_pyro", lambda *args: used.append(1) or whole(*args))
    model = make()
    options = dict(options)
    guide = options.pop("guide", pn.guides.MeanField)(model)
    pn.fit(model, guide, data(), epochs=1, batch_size=20, progress=False, **options)
    assert bool(used) == by_pyro


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_the_first_batch_is_taken_back_where_there_is_no_closed_form(monkeypatch):
    ours, theirs = (trained(monkeypatch, pyros, with_own_site) for pyros in (False, True))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class Heard(Messenger):
    """Notes the names of sites."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_sample(self, msg):
        self.names.add(msg["name"])


def test_a_handler_around_training_is_heard():
    model = make_model()
    trainer = pn.Trainer(model, pn.guides.MeanField(model), data(), batch_size=20)
    with Heard() as heard:
        trainer.epoch()
    assert {"shift", "scale", "y"} <= heard.names


@pytest.mark.parametrize("like", ["Bernoulli", "Normal"])
def test_impossible_targets_are_refused_on_a_device(simulated, like):
    for batch in (0, 2):
        torch.manual_seed(0)
        model = make_conv_model(likelihood=like)
        guide = make_guide("MeanField", model)
        x, y = make_data(like)
        y[8 * batch + 1, 0] = math.inf if like == "Normal" else 2.0
        train = [(x[i : i + 8].to(DEVICE), y[i : i + 8].to(DEVICE)) for i in (0, 8, 16)]
        with pytest.raises(DataError, match=r"support|between 0 and 1|diverged"):
            pn.fit(model, guide, train, epochs=1, fabric=make_fabric(), progress=False)


@pytest.mark.slow
def test_compiled_it_is_the_same():
    # Dynamo cannot see through the run-time type checks of this process.
    script = Path(__file__).with_name("compile_script.py")
    subprocess.run([sys.executable, str(script)], check=True)


@pytest.mark.parametrize(
    "options", [{"guide": OwnForward}, {"objective": pn.Objective(elbo=Trace_ELBO())}]
)
def test_what_has_no_closed_form_is_not_compiled(options):
    model = make_model()
    options = dict(options)
    guide = options.pop("guide", pn.guides.MeanField)(model)
    with pytest.raises(OptionError, match="compile=True needs an objective in closed form"):
        pn.fit(model, guide, data(), optimization=COMPILED, progress=False, **options)
