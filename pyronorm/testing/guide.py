"""What a guide has to hold, as a class of checks to inherit."""

from __future__ import annotations

import copy
import json
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyronorm.errors import NoDensityError
from pyronorm.guides import Guide
from pyronorm.model import NormalizationModel
from pyronorm.priors import HierarchicalBatchNoise
from pyronorm.testing.claims import SkipTest, check, expect, same
from pyronorm.testing.posterior import PosteriorConformance, small_inputs, small_model

__all__ = ["GuideConformance"]

_DRAWS = 4000


class GuideConformance(PosteriorConformance):
    """Checks that every :class:`~pyronorm.guides.Guide` passes; inherit it in a test class.

    .. code-block:: python

        class TestMine(GuideConformance):
            def make(self, model):
                return Mine(model)

    A guide is a posterior, so these are the checks of :class:`PosteriorConformance` and more. What
    applies is read off ``has_density``, ``has_analytic_kl`` and ``is_point``.
    """

    @check
    def test_sites_inside_any_plates(self) -> None:
        """The sites have the shape (*plates, channel), and independent values in a plate."""
        guide, model = self._guide()
        channels = model.space.num_channels
        plates: tuple[tuple[int, ...], ...] = ((), (4,), (4, 1), (2, 1, 1))
        for plate in plates:
            trace = _trace(guide, plate)
            for site in (model.space.shift_site, model.space.scale_site):
                expect(site in trace.nodes, f"the guide does not sample the site {site!r}")
                value = trace.nodes[site]["value"]
                expect(
                    value.shape == (*plate, channels),
                    f"in plates of shape {plate} the site {site!r} has shape {tuple(value.shape)}, "
                    f"expected {(*plate, channels)}",
                )
            if plate and not guide.is_point:
                values = trace.nodes[model.space.scale_site]["value"].flatten(0, -2)
                expect(
                    len(values.unique(dim=0)) > 1,
                    f"in plates of shape {plate} all draws are equal: draw anew for each call of "
                    "law() (or say is_point = True)",
                )

    @check
    def test_draws_and_density_are_those_of_the_sites(self) -> None:
        """Without Pyro a guide draws the same, with the log density of a trace."""
        guide, model = self._guide()
        draws = guide.draw(model, 5, seed=4)
        torch.manual_seed(4)
        trace = _trace(guide, (5, 1))
        for name, site in (("shift", model.space.shift_site), ("scale", model.space.scale_site)):
            value = trace.nodes[site]["value"].squeeze(1).detach()
            same(getattr(draws, name), value, f"draw() and the site {site!r} differ", 1e-5)
        if guide.is_point or not guide.has_density:
            expect(draws.log_density is None, "a guide without a density has log densities")
            return
        expect(draws.log_density is not None, "has_density = True, but draws have no log density")
        trace.compute_log_prob()
        terms = [
            site["log_prob"].reshape(5, -1).sum(1).detach()
            for site in trace.nodes.values()
            if site["type"] == "sample" and not site_is_subsample(site)
        ]
        assert draws.log_density is not None
        same(
            draws.log_density,
            torch.stack(terms).sum(0),
            "draw()'s log density is not the trace's",
            1e-3,
        )

    @check
    def test_follows_the_draws_of_the_model(self) -> None:
        """With ``draws=K`` there are K draws in training mode and one in evaluation mode."""
        model = small_model(draws=3)
        model.network.eval()  # batch statistics go with one draw only
        guide = self._made(model)
        channels = model.space.num_channels
        for training, shape in ((True, (3, 1, channels)), (False, (channels,))):
            model.training = training
            value = _trace(guide).nodes[model.space.shift_site]["value"]
            expect(
                value.shape == shape,
                f"with draws=3 and model.training={training} the shift has shape "
                f"{tuple(value.shape)}, expected {shape}: leave forward() as it is",
            )

    @check
    def test_gradients_reach_every_parameter(self) -> None:
        """An ELBO has a finite gradient for all trainable parameters."""
        guide, model = self._guide()
        parameters = dict(guide.named_parameters())
        x, y = small_inputs(7), torch.arange(7) % 3
        if not guide.has_density:
            try:
                Trace_ELBO().differentiable_loss(model, guide, x, y)
            except NoDensityError:
                return
            raise AssertionError(
                "has_density = False, but an ELBO takes the guide without an error"
            )
        elbos = [Trace_ELBO(), *([TraceMeanField_ELBO()] if guide.has_analytic_kl else [])]
        for elbo in elbos:
            loss = elbo.differentiable_loss(model, guide, x, y)
            expect(bool(loss.isfinite()), f"the loss of {type(elbo).__name__} is {loss.item()}")
            if not parameters:
                continue
            expect(loss.requires_grad, "no gradient reaches the guide: is law() under no_grad?")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                reached = gradient is not None and bool(gradient.isfinite().all())
                expect(
                    reached, f"no finite gradient reaches the parameter {name!r}: is it detached?"
                )

    @check
    def test_svi_trains_it(self) -> None:
        """Pyro's SVI moves all parameters, of a second guide in the process, too."""
        for number in (1, 2):
            guide, model = self._guide()
            parameters = dict(guide.named_parameters())
            if not parameters:
                raise SkipTest("it has no parameters")
            model.requires_grad_(False)
            before = {name: value.detach().clone() for name, value in parameters.items()}
            svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.01}), Trace_ELBO())
            for _ in range(3):
                svi.step(small_inputs(7), torch.arange(7) % 3)
            for name, value in parameters.items():
                moved = not torch.equal(value, before[name])
                expect(moved, f"SVI does not move the parameter {name!r} of guide {number}")

    @check
    def test_analytic_kl(self) -> None:
        """``has_analytic_kl`` is right: both ELBOs have one mean, within 5 standard errors."""
        guide, model = self._guide()
        if not (guide.has_density and guide.has_analytic_kl):
            raise SkipTest("has_analytic_kl = False")
        prior = model.prior
        draws = guide.draw(model, _DRAWS)
        assert draws.log_density is not None or guide.is_point
        if draws.log_density is None:
            raise SkipTest("a point has no KL divergence")
        ratio = draws.log_density - prior.log_prob(model.space, draws.shift, draws.scale, {})
        losses = torch.tensor(
            [
                TraceMeanField_ELBO().loss(lambda: prior.sample(model.space, guide.like), guide)
                for _ in range(50)
            ]
        )
        error = 5 * (ratio.var() / len(ratio) + losses.var() / len(losses)).sqrt() + 1e-3
        found, expected = losses.mean().item(), ratio.mean().item()
        expect(
            abs(found - expected) < error.item(),
            f"TraceMeanField_ELBO has the KL divergence {found:.4g}, draws have {expected:.4g}",
        )

    @check
    def test_settings_and_state_make_it_again(self) -> None:
        """``from_settings(settings())`` and the state give the same draws."""
        guide, model = self._guide()
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        try:
            settings = json.loads(json.dumps(guide.settings()))
        except TypeError as error:
            raise AssertionError(f"settings() are not ready for JSON: {error}") from error
        other = type(guide).from_settings(model, settings)
        other.load_state_dict(copy.deepcopy(guide.state_dict()))
        a, b = (g.draw(model, 4, seed=2) for g in (guide, other))
        lost = "something of the law is neither in settings() nor in the state"
        same(b.shift, a.shift, f"a loaded guide draws other shifts: {lost}", 0.0)
        same(b.scale, a.scale, f"a loaded guide draws other scales: {lost}", 0.0)

    @check
    def test_it_is_not_the_network(self) -> None:
        """Parameters and state are the guide's alone."""
        guide, model = self._guide()
        theirs = {p.data_ptr() for p in model.network.parameters()}
        for name, parameter in guide.named_parameters():
            owned = parameter.data_ptr() not in theirs
            expect(owned, f"the parameter {name!r} is the network's: keep no module of the model")

    @check
    def test_running_it_writes_nothing(self) -> None:
        """Neither sampling nor drawing changes parameters, buffers or the law."""
        guide, model = self._guide()
        state = copy.deepcopy(guide.state_dict())
        first = guide.draw(model, 3, seed=1)
        _trace(guide)
        guide.draw(model, 2)
        for name, value in guide.state_dict().items():
            unchanged = not isinstance(value, Tensor) or torch.equal(value, state[name])
            expect(unchanged, f"running the guide wrote {name}")
        again = guide.draw(model, 3, seed=1)
        same(again.shift, first.shift, "running the guide changed its law", 0.0)
        same(again.scale, first.scale, "running the guide changed its law", 0.0)

    @check
    def test_hyperparameters_of_the_prior(self) -> None:
        """With a hierarchical prior, a guide with a density samples the hyperparameters as well."""
        model = small_model(prior=HierarchicalBatchNoise(16.0))
        guide = self._made(model)
        sites = set(guide())
        expected = guide.has_density
        expect(
            ("df" in sites) == expected,
            f"with a hierarchical prior the guide samples {sorted(sites)}: call super().__init__(model)",
        )

    def _guide(self) -> tuple[Guide, NormalizationModel]:
        model = small_model()
        return self._made(model), model

    def _made(self, model: NormalizationModel) -> Guide:
        guide: Any = self.make(model)
        kind = type(guide).__name__
        expect(isinstance(guide, Guide), f"make must return a pyronorm.guides.Guide, got a {kind}")
        made: Guide = guide
        return made


def _trace(guide: Guide, plates: tuple[int, ...] = ()) -> Any:
    def sample() -> Any:
        with pyro.plate_stack("conformance", plates):
            return guide()

    return poutine.trace(sample).get_trace()
