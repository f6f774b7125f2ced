"""Simulation-based calibration: are the posteriors right on average over the prior?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pyronorm.checks import Count, Probability, checked
from pyronorm.display import displayed
from pyronorm.errors import OptionError
from pyronorm.infer import as_posterior
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.predict import evaluate_draws
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed, seed_value

__all__ = ["Calibration", "Uniformity", "simulation_based_calibration"]

_LEAST_EXPECTED = 5  # simulations per bin, for the chi-square distribution to hold


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Uniformity:
    """A chi-square test that ranks are uniform, for every latent.

    Attributes:
        shift: p-values, shape ``(channel,)``.
        scale: p-values, shape ``(channel,)``.
        level: false-alarm rate of :attr:`rejected`.
    """

    shift: Float[Tensor, " channel"]
    scale: Float[Tensor, " channel"]
    level: Probability

    @property
    def p(self) -> float:
        """The smallest p-value times the number of latents, at most 1 (Bonferroni)."""
        both = torch.cat([self.shift, self.scale])
        return min(1.0, float(both.min()) * len(both))

    @property
    def rejected(self) -> bool:
        """Whether uniformity of all latents is rejected, however they depend on each other."""
        return self.p < self.level


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Ranks of the latents that data were simulated with, among draws of the posterior.

    Attributes:
        shift: number of draws below the true shift, shape ``(simulation, channel)``.
        scale: number of draws below the true scale (and log scale), shape ``(simulation, channel)``.
        num_draws: ``L``, draws of each posterior; ranks are 0, ..., ``L``.
        labels: a label for each channel.
    """

    shift: Int[Tensor, "simulation channel"]
    scale: Int[Tensor, "simulation channel"]
    num_draws: Count
    labels: tuple[str, ...]

    @checked
    def histogram(self, bins: Count = 20) -> dict[str, Int[Tensor, "channel bins"]]:
        """Numbers of simulations by rank, in bins of equally many ranks.

        Args:
            bins: number of bins; it has to divide ``num_draws + 1``.

        Returns:
            ``{"shift": ..., "scale": ...}``, each of shape ``(channel, bins)``.

        Raises:
            OptionError: if the bins would hold different numbers of ranks.
        """
        if bins < 2 or (self.num_draws + 1) % bins:
            raise OptionError(
                f"Calibration: bins must be at least 2 and divide the {self.num_draws + 1} possible "
                f"ranks, got {bins}."
            )
        width = (self.num_draws + 1) // bins
        return {
            name: torch.stack(
                [torch.bincount(rank // width, minlength=bins) for rank in ranks.T.cpu()]
            )
            for name, ranks in (("shift", self.shift), ("scale", self.scale))
        }

    @checked
    def uniformity(self, bins: Count = 20, level: Probability = 0.01) -> Uniformity:
        r"""Test that the ranks are uniform, :math:`\sum_b (k_b - E)^2/E \sim \chi^2_{B-1}`.

        Args:
            bins: number of bins ``B``; it has to divide ``num_draws + 1``.
            level: false-alarm rate for all latents together.

        Raises:
            OptionError: if the bins do not fit, or expect fewer than 5 simulations each.
        """
        from scipy.stats import chi2

        number = len(self.shift)
        expected = number / bins
        if expected < _LEAST_EXPECTED:
            raise OptionError(
                f"Calibration.uniformity: {number} simulations in {bins} bins are {expected:.1f} each, "
                f"too few for the test; take at most {max(2, number // _LEAST_EXPECTED)} bins."
            )
        p = {}
        for name, counts in self.histogram(bins).items():
            statistic = (counts - expected).square().sum(1) / expected
            p[name] = torch.from_numpy(chi2.sf(statistic.double().numpy(), bins - 1))
        return Uniformity(p["shift"], p["scale"], level)


@checked
def simulation_based_calibration(
    model: NormalizationModel,
    x: Shaped[Tensor, "example *features"],
    fit: Callable[[Tensor, Tensor], Any],
    num_simulations: Count = 200,
    num_draws: Count = 99,
    *,
    seed: Seed = None,
    report: Callable[[int], None] | None = None,
) -> Calibration:
    r"""Check a way to find posteriors on data that the model itself has made.

    .. math::
        z^* \sim p(z), \qquad y^* \sim p(y | x, z^*), \qquad z_1, \dots, z_L \sim q(z | x, y^*), \qquad
        \text{rank} = \#\{l : z_l < z^*\}

    If ``q`` is the posterior, each latent's rank is uniform on ``0, ..., L``, whatever the model. A
    posterior that is too narrow heaps ranks up at both ends, one too wide in the middle, a biased one
    at one end. Ranks of different latents are not independent. Uniform ranks of single latents say
    nothing of how the posterior joins them.

    Args:
        model: the model, with a proper prior; its network runs in evaluation mode.
        x: inputs, ``num_data`` of them, the same in every simulation.
        fit: called with ``x`` and simulated ``y``; returns the posterior. Of stored draws and
            chains ``num_draws`` are taken, evenly spaced; those of chains should be far enough apart
            to be nearly independent.
        num_simulations: how many.
        num_draws: ``L``; one below a multiple of the bins that ranks are to be counted in.
        seed: seeds torch, whose state is restored afterwards; None uses it as it is.
        report: called with the number of each simulation when it begins.

    Returns:
        The ranks.

    Raises:
        OptionError: if the prior is improper, the numbers are not positive, ``x`` are not
            ``num_data`` examples, or ``fit`` returns no posterior or fewer draws.
        StatisticsError: if population statistics are missing or stale.

    Source: Talts, Betancourt, Simpson, Vehtari & Gelman, "Validating Bayesian Inference Algorithms
    with Simulation-Based Calibration" (2018).
    """
    where = "simulation_based_calibration"
    for name, value in (("num_simulations", num_simulations), ("num_draws", num_draws)):
        if value < 1:
            raise OptionError(f"{where}: {name} must be at least 1, got {value}.")
    if not model.prior.is_proper:
        raise OptionError(
            f"{where}: the prior is improper, so nothing can be drawn from it. Use another prior."
        )
    if len(x) != model.num_data:
        raise OptionError(
            f"{where}: the model is made for num_data={model.num_data} examples, got {len(x)}."
        )
    space = model.space
    ranks: dict[str, list[Tensor]] = {"shift": [], "scale": []}
    seeds = torch.Generator().manual_seed(seed_value(seed))
    with torch.random.fork_rng():
        for simulation in range(num_simulations):
            if report is not None:
                report(simulation)
            # fit may seed the generators itself; neither data nor draws may depend on that.
            before, after = torch.randint(2**62, (2,), generator=seeds).tolist()
            torch.manual_seed(before)
            with torch.no_grad():
                truth = model.prior.draws(model, 1)
                y = _simulate(model, truth, x)
            posterior = as_posterior(fit(x, y), f"{where}, fit", model)
            draws = posterior.draw(model, num_draws, data=(x, y), seed=after)
            for name, values in ranks.items():
                space.check(getattr(draws, name), where)
                values.append((getattr(draws, name) < getattr(truth, name)).sum(0))
    return Calibration(
        torch.stack(ranks["shift"]), torch.stack(ranks["scale"]), num_draws, space.channel_labels
    )


def _simulate(model: NormalizationModel, truth: Draws, x: Tensor) -> Tensor:
    with evaluation_mode(model):
        parts = [
            model.likelihood.distribution(output, 1).sample()[0]
            for _, output in evaluate_draws([(model, truth)], x)
        ]
    return torch.cat(parts)
