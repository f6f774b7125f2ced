"""What a prior has to hold, as a class of checks to inherit."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import Independent as TorchIndependent

from pyronorm.errors import OptionError
from pyronorm.guides import Fixed, MeanField
from pyronorm.latents import LatentLayer, LatentSpace
from pyronorm.laws import Independent
from pyronorm.priors import Prior
from pyronorm.testing.claims import SkipTest, check, expect, same
from pyronorm.testing.posterior import small_inputs, small_model

__all__ = ["PriorConformance"]

_LAYERS = (LatentLayer("norm1", 3, "Batch"), LatentLayer("norm2", 2, "Batch"))
_DRAWS = 4000


class PriorConformance(ABC):
    """Checks that every :class:`~pyronorm.priors.Prior` passes; inherit it in a test class.

    .. code-block:: python

        class TestMine(PriorConformance):
            def make(self):
                return Mine(0.3)

    Each check is a method ``test_...``. It raises an AssertionError that says what broke, or skips
    itself where it does not apply.
    """

    @abstractmethod
    def make(self) -> Prior:
        """Return the prior."""

    @check
    def test_settings_make_it_again(self) -> None:
        """A prior is a frozen dataclass of numbers and strings, equal to one of the same settings."""
        prior = self._prior()
        kind = type(prior)
        params: Any = getattr(kind, "__dataclass_params__", None)
        frozen = params is not None and params.frozen
        expect(frozen, f"{kind.__name__} is no frozen dataclass: its settings could change unseen")
        try:
            settings = json.loads(json.dumps(prior.settings()))
        except TypeError as error:
            raise AssertionError(f"settings() are not ready for JSON: {error}") from error
        expect(kind(**settings) == prior, f"{kind.__name__}(**settings()) is another prior")

    @check
    def test_shapes_and_dtype(self) -> None:
        """A log density for each draw, finite for positive scales, in the dtype of ``like``."""
        prior = self._prior()
        for dtype in (torch.float32, torch.float64):
            for layers in (_LAYERS, _LAYERS[:1]):
                space = LatentSpace(layers)
                shift, scale = _values(space, dtype)
                for size in ((), (4,)):
                    pair = (v.expand(*size, space.num_channels) for v in (shift, scale))
                    density = self._log_prob(prior, space, *pair)
                    case = (
                        f"for {space.num_channels} channels and values of shape (*{size}, channel)"
                    )
                    expect(
                        density.shape == size,
                        f"the log density has shape {tuple(density.shape)} {case}, expected {size}",
                    )
                    expect(bool(density.isfinite().all()), f"the log density is {density} {case}")
                    expect(
                        density.dtype == dtype, f"the log density is {density.dtype} for {dtype}"
                    )

    @check
    def test_channels_of_the_space(self) -> None:
        """Draws have the channels of the space they are asked for, positive scales, and differ."""
        prior = self._prior()
        if not prior.is_proper:
            try:
                prior.draws(small_model(), 2)
            except OptionError:
                return
            raise AssertionError("is_proper = False, but the prior has draws")
        for hidden in (6, 4):
            model = small_model(hidden=hidden)
            draws = prior.draws(model, 5, seed=1)
            channels = model.space.num_channels
            expect(
                draws.shift.shape == draws.scale.shape == (5, channels),
                f"5 draws for {channels} channels have shapes {tuple(draws.shift.shape)} and "
                f"{tuple(draws.scale.shape)}: take space.num_channels",
            )
            expect(bool((draws.scale > 0).all()), "scales must be positive")
            expect(len(draws.scale.unique(dim=0)) > 1, "all draws are equal")
            again = prior.draws(model, 5, seed=1)
            same(again.shift, draws.shift, "the same seed gave other draws", 0.0)

    @check
    def test_only_device_and_dtype_of_like_count(self) -> None:
        """The values and the shape of ``like`` do not matter."""
        prior, space = self._prior(), LatentSpace(_LAYERS)
        densities = []
        for like in (torch.full((7,), torch.nan).double(), torch.zeros((), dtype=torch.double)):
            law = prior.law(space, like)
            hyper = {name: torch.ones_like(fn.mean) for name, fn in law.hyper.items()}
            densities.append(law.log_prob(*_values(space, torch.double), hyper))
        same(densities[1], densities[0], "the law depends on the values of like", 0.0)

    @check
    def test_density_is_that_of_the_draws(self) -> None:
        """The density integrates to the shares of draws: between quantiles, channel by channel."""
        prior = self._prior()
        if not prior.is_proper:
            raise SkipTest("it is improper")
        space = LatentSpace(_LAYERS[:1])
        like = torch.zeros((), dtype=torch.double)
        torch.manual_seed(0)
        draws = prior.draws(small_model(dtype=torch.double), _DRAWS)
        law = prior.law(space, like)
        pair = (law.shift, law.scale) if isinstance(law, Independent) else ()
        if not pair or not all(isinstance(fn, TorchIndependent) for fn in pair):
            raise SkipTest("its latents depend on each other")
        # One channel varies, the others stay: of the density between two quantiles of the draws, half
        # has to be below the median.
        for name in ("shift", "scale"):
            values = getattr(draws, name)[:, 0]
            low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9]).double())
            below = self._mass(prior, space, name, low, middle)
            share = (below / (below + self._mass(prior, space, name, middle, high))).item()
            expect(
                abs(share - 0.5) < 5 * 0.5 / (0.8 * _DRAWS) ** 0.5 + 0.01,
                f"half of the draws of {name} between the 10 % and 90 % quantiles are below the median, "
                f"but {share:.1%} of the density is: draws and density differ",
            )

    @check
    def test_hyperparameters_are_reported(self) -> None:
        """What is reported of hyperparameters has a label for each, and names of sites a prefix."""
        prior = self._prior()
        law = prior.law(LatentSpace(_LAYERS, "net."), torch.zeros(()))
        if not law.hyper:
            raise SkipTest("it has no hyperparameters")
        for name in law.hyper:
            expect(name.startswith("net."), f"the site {name!r} lacks the prefix of the space")
        means = {name: fn.mean for name, fn in law.hyper.items()}
        for name, (value, labels) in prior.report(LatentSpace(_LAYERS, "net."), means).items():
            count = value.shape[-1]
            expect(count == len(labels), f"{count} values of {name} have {len(labels)} labels")

    @check
    def test_trains_a_guide(self) -> None:
        """An ELBO against it is finite, with finite gradients."""
        model = small_model(prior=self._prior())
        guide = MeanField(model)
        loss = Trace_ELBO().differentiable_loss(model, guide, small_inputs(7), torch.arange(7) % 3)
        expect(bool(loss.isfinite()), f"the loss of a mean-field guide is {loss.item()}")
        gradients = torch.autograd.grad(loss, list(guide.parameters()))
        for (name, _), gradient in zip(guide.named_parameters(), gradients, strict=True):
            expect(bool(gradient.isfinite().all()), f"the gradient of {name!r} is not finite")

    @check
    def test_as_a_guide_against_itself_the_divergence_is_zero(self) -> None:
        """:class:`~pyronorm.guides.Fixed` with this prior has KL divergence 0 to it."""
        prior = self._prior()
        if not prior.is_proper:
            raise SkipTest("it is improper")
        divergence = Fixed(small_model(prior=prior), prior).kl(prior, 10).item()
        expect(abs(divergence) < 1e-3, f"KL of the prior to itself is {divergence:.4g}")

    def _prior(self) -> Prior:
        prior: Any = self.make()
        kind = type(prior).__name__
        expect(isinstance(prior, Prior), f"make must return a pyronorm.priors.Prior, got a {kind}")
        made: Prior = prior
        return made

    @staticmethod
    def _log_prob(prior: Prior, space: LatentSpace, shift: Tensor, scale: Tensor) -> Tensor:
        """Of the latents, with hyperparameters at 1."""
        law = prior.law(space, shift)
        size = shift.shape[:-1]
        hyper = {name: torch.ones_like(fn.mean).expand(*size, -1) for name, fn in law.hyper.items()}
        return prior.log_prob(space, shift, scale, hyper)

    def _mass(
        self, prior: Prior, space: LatentSpace, name: str, low: Tensor, high: Tensor
    ) -> Tensor:
        """The density's integral over one channel, up to a factor."""
        t = torch.linspace(0, 1, 2001, dtype=torch.double)
        points = low + (high - low) * t
        pair = {
            key: value.expand(len(t), -1).clone()
            for key, value in zip(("shift", "scale"), _values(space, torch.double), strict=True)
        }
        pair[name][:, 0] = points
        density = self._log_prob(prior, space, pair["shift"], pair["scale"])
        return torch.trapezoid(density.exp(), points)


def _values(space: LatentSpace, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    steps = torch.arange(space.num_channels, dtype=dtype)
    return 0.1 * (steps - 1), 0.9 + 0.1 * steps
