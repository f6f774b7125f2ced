"""The suite for guides passes those of the library and names what is wrong."""

from __future__ import annotations

import re

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.guides import Guide
from pyronorm.laws import Independent
from pyronorm.testing import GuideConformance, run_checks
from tests.guides.cases import CASES, make_guide


def suite(make_it, random=True):
    class Suite(GuideConformance):
        is_random = random

        def make(self, model):
            return make_it(model)

    return Suite()


@pytest.mark.parametrize("case", [c for c in CASES if "." not in c])
def test_guides_of_the_library(case):
    results = run_checks(suite(lambda m: make_guide(case, m), case not in ("Point", "MAP")))
    skipped = {r for r in results.values() if r != "passed"}
    assert skipped <= {
        "skipped: is_random = False",
        "skipped: it has no density",
        "skipped: it has no parameters",
        "skipped: has_analytic_kl = False",
        "skipped: a point has no KL divergence",
    }


class Wide(Guide):
    """Right: a Student-t shift and a log-normal scale."""

    def __init__(self, model, df=5.0):
        super().__init__(model)
        self.df = df
        zeros = self.like.new_zeros(self.space.num_channels)
        self.loc = nn.Parameter(zeros)
        self.log_std = nn.Parameter(zeros - 2)

    def law(self):
        shift = dist.StudentT(self.df, self.loc, self.log_std.exp())
        return Independent(shift.to_event(1), self.scale().to_event(1))

    def scale(self):
        return dist.LogNormal(torch.zeros_like(self.loc), self.log_std.exp())


def test_what_is_right_passes():
    results = run_checks(suite(Wide))
    assert len(results) == 19
    assert {n for n, r in results.items() if r != "passed"} == {"test_analytic_kl"}


class Detached(Wide):
    def scale(self):
        return dist.LogNormal(torch.zeros_like(self.loc), self.log_std.detach().exp())

    def law(self):
        shift = dist.StudentT(self.df, self.loc, self.log_std.detach().exp())
        return Independent(shift.to_event(1), self.scale().to_event(1))


class Negative(Wide):
    def scale(self):
        return dist.Normal(torch.zeros_like(self.loc), self.log_std.exp())


class NoEvent(Wide):
    def law(self):
        return Independent(dist.Normal(self.loc, 1.0), self.scale().to_event(1))


class Single(Wide):
    """Draws in the law, once for all plates."""

    def law(self):
        shift, scale = (d.to_event(1)() for d in (dist.Normal(self.loc, 0.1), self.scale()))
        return Independent(dist.Delta(shift, event_dim=1), dist.Delta(scale, event_dim=1))


class Forgets(Wide):
    """A number that the law depends on, kept under another name."""

    def __init__(self, model, width=0.3):
        super().__init__(model)
        self._width = 0.3 if isinstance(width, torch.Tensor) else width + 0.1
        self.width = width if isinstance(width, torch.Tensor) else 0.3

    def scale(self):
        return dist.LogNormal(torch.zeros_like(self.loc), self._width)

    def settings(self):
        return {"width": 0.5}


class NotJson(Wide):
    def settings(self):
        return {"df": torch.tensor(5.0)}


class HoldsTheNetwork(Wide):
    def __init__(self, model):
        super().__init__(model)
        self.network = model.network


class Moves(Wide):
    """Its width grows with every call."""

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("calls", torch.zeros(()))

    def scale(self):
        self.calls += 1
        return dist.LogNormal(torch.zeros_like(self.loc), 0.1 + 0.01 * self.calls)


class IgnoresPlates(Wide):
    def forward(self, *args, **kwargs):
        return self.law().sample(self.space)


class SingleFloat(Wide):
    def scale(self):
        return dist.LogNormal(torch.zeros(9), torch.ones(9) * 0.1)

    def law(self):
        return Independent(
            dist.Normal(torch.zeros(9), self.log_std.float().exp()).to_event(1),
            self.scale().to_event(1),
        )


class SaysAnalytic(Wide):
    """Its order of sites is not the model's, and its density is another one."""

    has_analytic_kl = True

    def draw(self, model, num_samples, *, data=None, seed=None):
        draws = super().draw(model, num_samples, data=data, seed=seed)
        return pn.Draws(draws.shift, draws.scale, draws.log_density + 1, draws.hyper)


class WithoutDensity(Wide):
    has_density = False


class NoGuide:
    def __init__(self, model):
        self.model = model

    def draw(self, model, num_samples, *, data=None, seed=None):
        return pn.guides.MeanField(model).draw(model, num_samples, seed=seed)


BROKEN = [
    (Detached, "gradients", "no finite gradient reaches the parameter 'log_std': is it detached?"),
    (Detached, "svi_trains", "SVI does not move the parameter 'log_std' of guide 1"),
    (Negative, "draws_have", "every scale must be finite and above 0"),
    (NoEvent, "sites", r"Is \.to_event\(1\) missing\?"),
    (Single, "sites", r"in plates of shape \(4,\) all draws are equal: draw anew"),
    (Forgets, "settings", "draws other scales: something of the law is neither in settings"),
    (NotJson, "settings", r"settings\(\) are not ready for JSON"),
    (
        HoldsTheNetwork,
        "it_is_not",
        r"the parameter 'network\.\S*' is the network's: keep no module",
    ),
    (Moves, "running_it", "running the guide wrote calls"),
    (
        IgnoresPlates,
        "follows",
        r"has shape \(9,\), expected \(3, 1, 9\): leave forward\(\) as it is",
    ),
    (SingleFloat, "gradients", "no finite gradient reaches the parameter 'loc'"),
    (SaysAnalytic, "draws_and", r"draw\(\)'s log density is not the trace's"),
    (SaysAnalytic, "analytic", r"TraceMeanField_ELBO has the KL divergence .*, draws have"),
    (WithoutDensity, "gradients", "has_density = False, but an ELBO takes the guide"),
    (NoGuide, "sites", r"make must return a pyronorm\.guides\.Guide, got a NoGuide"),
]


@pytest.mark.parametrize(
    ("kind", "where", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_is_wrong_is_named(kind, where, message):
    subject = suite(kind)
    name = next(n for n in dir(subject) if n.startswith(f"test_{where}"))
    with pytest.raises(AssertionError) as error:
        getattr(subject, name)()
    assert re.search(message, str(error.value)), str(error.value)
