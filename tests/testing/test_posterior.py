"""The suite for posteriors passes what is right and names what is wrong."""

from __future__ import annotations

import re

import pytest
import torch

import pyronorm as pn
from pyronorm.latents import Draws
from pyronorm.randomness import seeded
from pyronorm.testing import PosteriorConformance, run_checks


class Wide:
    """Right: normal shifts and log-normal scales of a fixed width."""

    width = 0.1

    @torch.no_grad()
    def draw(self, model, num_samples, *, data=None, seed=None):
        if num_samples < 1:
            raise pn.errors.OptionError(f"num_samples must be at least 1, got {num_samples}.")
        if model.space.num_channels != 9:
            raise pn.errors.ShapeError("another network.")
        with seeded(seed, model.network.like):
            shift, log_scale = self.values(model, num_samples)
        return Draws(shift, log_scale.exp())

    def values(self, model, num_samples):
        like = model.network.like
        return self.width * torch.randn(2, num_samples, 9, dtype=like.dtype, device=like.device)


class TestWide(PosteriorConformance):
    def make(self, model):
        return Wide()


class TestMeanField(PosteriorConformance):
    def make(self, model):
        return pn.guides.MeanField(model)


class TestPoint(PosteriorConformance):
    is_random = False

    def make(self, model):
        return pn.guides.Point(model)


class TestDraws(PosteriorConformance):
    is_random = False

    def make(self, model):
        return Draws(0.1 * torch.randn(8, 9), torch.rand(8, 9) + 0.5, torch.randn(8), num_chains=2)


class TestEnsemble(PosteriorConformance):
    def make(self, model):
        return pn.Ensemble([(model, pn.guides.MeanField(model)), (model, Wide())])


class TestFunction(PosteriorConformance):
    def make(self, model):
        import pyro
        import pyro.distributions as dist

        def guide(x=None, y=None):
            zeros = model.network.like.new_zeros(9)
            pyro.sample("shift", dist.Normal(zeros, 0.1).to_event(1))
            pyro.sample("scale", dist.LogNormal(zeros, 0.1).to_event(1))

        return pn.PyroGuide(guide)


class IgnoresSeed(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        return super().draw(model, num_samples, data=data)


class SeedsGlobally(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        if isinstance(seed, torch.Generator):
            seed = seed.initial_seed()
        if seed is not None:
            torch.manual_seed(seed)
        return super().draw(model, num_samples, data=data)


class Negative(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        draws = super().draw(model, num_samples, data=data, seed=seed)
        return Draws(draws.shift, -draws.scale)


class Single(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        draws = super().draw(model, num_samples, data=data, seed=seed)
        return Draws(draws.shift[:1].expand_as(draws.shift), draws.scale[:1].expand_as(draws.scale))


class Few(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        return super().draw(model, min(4, num_samples), data=data, seed=seed)


class Tuple(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        draws = super().draw(model, num_samples, data=data, seed=seed)
        return draws.shift, draws.scale


class Writes(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        model.network.layers[0].weight.data.add_(1)
        return super().draw(model, num_samples, data=data, seed=seed)


class Switches(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        model.eval()
        return super().draw(model, num_samples, data=data, seed=seed)


class SingleFloat(Wide):
    def values(self, model, num_samples):
        return torch.randn(2, num_samples, 9)


class TakesAnyNetwork(Wide):
    @torch.no_grad()
    def draw(self, model, num_samples, *, data=None, seed=None):
        with seeded(seed):
            shift, log_scale = torch.randn(2, num_samples, model.space.num_channels)
        return Draws(shift, log_scale.exp())


class Raw(Wide):
    def draw(self, model, num_samples, *, data=None, seed=None):
        assert num_samples
        return super().draw(model, num_samples, data=data, seed=seed)


BROKEN = [
    (IgnoresSeed, "a_seed_repeats", "seed=5 gave other shifts the second time"),
    (SeedsGlobally, "a_seed_leaves", r"moved torch's generator: draw within"),
    (Negative, "draws_have", "every scale must be finite and above 0"),
    (Single, "draws_differ", r"all draws are equal \(or say is_random = False\)"),
    (Few, "draws_have", r"draw\(model, 6\) must return 6 draws of 9 channels, got shape \(4, 9\)"),
    (Tuple, "draws_have", "draw must return pyronorm.Draws, got tuple"),
    (Writes, "drawing_changes_nothing", "drawing changed network.network.1.weight"),
    (Switches, "drawing_changes_nothing", "drawing changed the mode of the model"),
    (
        SingleFloat,
        "draws_have",
        "must have the dtype of the model, torch.float64, got torch.float32",
    ),
    (TakesAnyNetwork, "refuses", "another network must be refused, got draws"),
    (
        Raw,
        "refuses",
        "num_samples=0 must be refused with an error of pyronorm.errors, got Assertion",
    ),
]


@pytest.mark.parametrize(
    ("kind", "where", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_is_wrong_is_named(kind, where, message):
    class Suite(PosteriorConformance):
        def make(self, model):
            return kind()

    with pytest.raises(AssertionError) as error:
        run_checks(Suite())
    assert re.search(rf"test_{where}\w*: .*{message}", str(error.value)), str(error.value)
