"""What a posterior has to hold, as a class of checks to inherit."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyronorm.conversion import convert
from pyronorm.diagnostics import evaluate, to_arviz
from pyronorm.errors import PyronormError
from pyronorm.infer import Posterior, as_posterior, predict
from pyronorm.latents import Draws
from pyronorm.likelihoods import Categorical
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import trust_statistics
from pyronorm.priors import Prior, Standard
from pyronorm.testing.claims import SkipTest, check, expect, same

__all__ = ["PosteriorConformance", "small_inputs", "small_model"]

_SAMPLES = 6


class PosteriorConformance(ABC):
    """Checks that every :class:`~pyronorm.infer.Posterior` passes; inherit it in a test class.

    .. code-block:: python

        class TestMine(PosteriorConformance):
            def make(self, model):
                return Mine(model)

    Each check is a method ``test_...``. It raises an AssertionError that says what broke, or skips
    itself where it does not apply. The model is a small classifier with two layers of latents.
    """

    is_random: ClassVar[bool] = True
    """Whether draws differ from each other and between seeds (not so for a point, or stored draws)."""

    @abstractmethod
    def make(self, model: NormalizationModel) -> Any:
        """Return the posterior for that model; with stored draws, at least 6 of them."""

    @check
    def test_draws_have_the_models_form(self) -> None:
        """As many draws as asked for, of all channels, finite, with positive scales, in its dtype."""
        for dtype in (torch.float32, torch.float64):
            model, posterior = self._case(dtype)
            for number in (1, _SAMPLES):
                draws = posterior.draw(model, number)
                expect(
                    isinstance(draws, Draws),
                    f"draw must return pyronorm.Draws, got {type(draws).__name__}",
                )
                channels = model.space.num_channels
                expect(
                    draws.shift.shape[1:] == (channels,) and len(draws) % number == 0,
                    f"draw(model, {number}) must return {number} draws of {channels} channels, got "
                    f"shape {tuple(draws.shift.shape)}",
                )
                expect(
                    draws.shift.dtype == draws.scale.dtype == dtype,
                    f"draws must have the dtype of the model, {dtype}, got {draws.shift.dtype}",
                )
                expect(
                    bool(draws.shift.isfinite().all() and draws.scale.isfinite().all()),
                    "draws must be finite",
                )
                expect(bool((draws.scale > 0).all()), "scales must be positive")
                expect(
                    not (draws.shift.requires_grad or draws.scale.requires_grad),
                    "draws must not ask for gradients: draw under torch.no_grad()",
                )

    @check
    def test_a_seed_repeats(self) -> None:
        """The same seed, or a generator in the same state, gives the same draws."""
        model, posterior = self._case()
        first, second = (posterior.draw(model, _SAMPLES, seed=5) for _ in range(2))
        same(second.shift, first.shift, "seed=5 gave other shifts the second time", 0.0)
        same(second.scale, first.scale, "seed=5 gave other scales the second time", 0.0)
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        a, b = (posterior.draw(model, _SAMPLES, seed=generator) for generator in generators)
        same(b.shift, a.shift, "a generator in the same state gave other shifts", 0.0)

    @check
    def test_a_seed_leaves_the_users_generator(self) -> None:
        """With a seed torch's own generator is afterwards as it was."""
        model, posterior = self._case()
        before = torch.get_rng_state()
        seeds: list[Any] = [5, torch.Generator().manual_seed(3)]
        for seed in seeds:
            posterior.draw(model, _SAMPLES, seed=seed)
            expect(
                torch.equal(before, torch.get_rng_state()),
                "draw(..., seed=...) moved torch's generator: draw within "
                "pyronorm.randomness.seeded(seed, like)",
            )

    @check
    def test_draws_differ(self) -> None:
        """Draws differ from each other, and from those of another seed."""
        if not self.is_random:
            raise SkipTest("is_random = False")
        model, posterior = self._case()
        draws = posterior.draw(model, _SAMPLES, seed=1)
        both = torch.cat([draws.shift, draws.scale], 1)
        expect(len(both.unique(dim=0)) > 1, "all draws are equal (or say is_random = False)")
        other = posterior.draw(model, _SAMPLES, seed=2)
        expect(not torch.equal(draws.shift, other.shift), "another seed gave the same draws")

    @check
    def test_drawing_changes_nothing(self) -> None:
        """The model keeps its parameters, buffers, modes and gradients."""
        model, posterior = self._case()
        for training in (True, False):
            model.train(training)
            before = copy.deepcopy(model.state_dict())
            posterior.draw(model, 2)
            for name, value in model.state_dict().items():
                same(value, before[name], f"drawing changed {name}", 0.0)
            expect(model.training is training, "drawing changed the mode of the model")
            expect(
                all(p.grad is None and p.requires_grad for p in model.parameters()),
                "drawing left gradients, or froze parameters",
            )

    @check
    def test_log_density_is_one_number_a_draw(self) -> None:
        """The log density is a finite number for each draw, or None."""
        model, posterior = self._case()
        density = posterior.draw(model, _SAMPLES).log_density
        if density is None:
            raise SkipTest("it has no density")
        expect(bool(density.isfinite().all()), f"log densities must be finite, got {density}")

    @check
    def test_predicts_with_its_draws(self) -> None:
        """The prediction is the average over the draws of the same seed."""
        model, posterior = self._case()
        x = small_inputs(7)
        draws = posterior.draw(model, _SAMPLES, seed=4)
        model.eval()
        with torch.no_grad():
            outputs = model.network(x, draws.shift[:, None], draws.scale[:, None])
        expected = outputs.softmax(-1).mean(0)
        found = predict(model, posterior, x, _SAMPLES, seed=4).mean
        same(found, expected, "predict(...).mean is not the average over draws of that seed", 1e-5)

    @check
    def test_is_judged_and_exported(self) -> None:
        """``evaluate`` and ``to_arviz`` take it."""
        model, posterior = self._case()
        x, y = small_inputs(7), torch.arange(7) % 3
        metrics = evaluate(model, posterior, (x, y), _SAMPLES, seed=1)
        expect("nll" in metrics, "evaluate gave no nll")
        idata = to_arviz(model, posterior, (x, y), _SAMPLES, seed=1)
        shape = idata["log_likelihood"]["y"].shape
        expect(shape[-1] == 7, f"to_arviz has a log likelihood of shape {shape} for 7 examples")

    @check
    def test_refuses_what_cannot_be(self) -> None:
        """No draws, and another network, are refused with an error of pyronorm."""
        model, posterior = self._case()
        other = small_model(hidden=4)
        for arguments, what in (((model, 0), "num_samples=0"), ((other, 2), "another network")):
            try:
                posterior.draw(*arguments)
            except PyronormError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"{what} must be refused with an error of pyronorm.errors, got "
                    f"{type(error).__name__}: {error}"
                ) from error
            raise AssertionError(f"{what} must be refused, got draws")

    def _case(self, dtype: torch.dtype = torch.float32) -> tuple[NormalizationModel, Posterior]:
        model = small_model(dtype=dtype)
        return model, as_posterior(self.make(model), type(self).__name__, model)


def small_inputs(number: int) -> Tensor:
    """So many different examples."""
    return torch.linspace(-1.5, 1.5, number * 5).reshape(number, 5).sin()


def small_model(
    hidden: int = 6,
    dtype: torch.dtype = torch.float32,
    prior: Prior | None = None,
    draws: int = 1,
) -> NormalizationModel:
    """A classifier of five inputs with two normalized layers.

    Args:
        hidden: channels of the first; the second has three.
        dtype: of the network.
        prior: None for a standard one.
        draws: per mini-batch.
    """
    network = nn.Sequential(
        nn.Linear(5, hidden),
        nn.BatchNorm1d(hidden),
        nn.Tanh(),
        nn.Linear(hidden, 3),
        nn.BatchNorm1d(3),
    )
    converted = convert(network).to(dtype)
    trust_statistics(converted)
    prior = Standard(0.3, 0.3) if prior is None else prior
    return NormalizationModel(converted, Categorical(), 50, prior, draws)
