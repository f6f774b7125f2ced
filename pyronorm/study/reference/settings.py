"""The problem, and what goes into its solutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyronorm.checks import Count, Natural, Positive, Probability, check_fields, checked
from pyronorm.errors import OptionError
from pyronorm.priors import BatchNoise, Prior, Standard
from pyronorm.randomness import SeedNumber

__all__ = ["PRIORS", "Settings", "choose_prior"]

PRIORS: Mapping[str, Prior] = {
    "standard": Standard(0.5, 0.5),
    "batch-noise": BatchNoise(64),
}
"""Priors by the name that the command line takes."""

_LEAST = {
    "seed": 0,
    "epochs": 1,
    "batch_size": 2,  # one value has no batch statistics
    "width": 1,
    "chains": 2,  # the one half of them is judged by the other
    "warmup": 1,
    "draws": 4,  # for the effective sample size
    "steps": 1,
    "particles": 1,
    "bank_rows": 21,  # for a Gaussian of rank 20
    "num_samples": 25,  # for Pareto k
    "directions": 1,
}


@dataclass(frozen=True)
class Settings:
    """The problem, and what goes into its solutions.

    Attributes:
        prior: prior of the latents, a proper one.
        seed: decides split, initial weights, batches, chains (``seed + k`` for chain ``k``) and draws.
        width: channels of each of the two normalized layers; there are ``4 * width`` latents.
        num_data: training examples; None for all.
        epochs: passes over the training data, for the network.
        batch_size: examples per step for the network, and per row of the bank.
        lr: learning rate of Adam for the network.
        chains: NUTS chains, one after the other.
        warmup: steps of adaptation of each chain.
        draws: draws kept of each chain.
        steps: steps of variational inference for each guide, each on all the training data.
        particles: draws of the latents per step.
        guide_lr: initial learning rate of Adam for the guides, falling linearly to a hundredth.
        bank_rows: training batches in the statistics bank.
        num_samples: draws of each posterior that it is judged by.
        level: probability of the intervals whose coverage is measured.
        directions: directions of the sliced Wasserstein distance.
    """

    prior: Prior = field(default_factory=lambda: PRIORS["standard"])
    seed: SeedNumber = 0
    width: Count = 16
    num_data: Count | None = None
    epochs: Count = 15
    batch_size: Count = 64
    lr: Positive = 5e-3
    chains: Count = 4
    warmup: Natural = 250
    draws: Count = 400
    steps: Count = 1200
    particles: Count = 4
    guide_lr: Positive = 1e-2
    bank_rows: Count = 256
    num_samples: Count = 1000
    level: Probability = 0.9
    directions: Count = 500

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.prior.is_proper:
            raise OptionError(
                f"reference: the prior must be proper, got {type(self.prior).__name__}."
            )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise OptionError(
                    f"reference: {name} must be at least {least}, got {getattr(self, name)}."
                )
        if self.num_data is not None and self.num_data < self.batch_size:
            raise OptionError(
                f"reference: num_data must be at least the batch size {self.batch_size}, got "
                f"{self.num_data}."
            )
        if self.num_samples > self.chains * self.draws:
            raise OptionError(
                f"reference: num_samples={self.num_samples} draws are also taken of the chains, which "
                f"have {self.chains * self.draws}."
            )

    @classmethod
    def quick(cls, prior: Prior | None = None, seed: int = 0) -> Settings:
        """A rough look in about a minute: 2 shorter chains, guides not fully converged.

        Args:
            prior: prior of the latents; None for the default.
            seed: the seed.
        """
        prior = PRIORS["standard"] if prior is None else prior
        return cls(prior, seed, chains=2, warmup=100, draws=200, steps=200, num_samples=400)


@checked
def choose_prior(name: str) -> Prior:
    """Look a prior up by name.

    Args:
        name: one of :data:`PRIORS`.

    Raises:
        OptionError: for an unknown name; the message lists the choices.
    """
    if name not in PRIORS:
        raise OptionError(f"no prior {name!r}; choose from {', '.join(PRIORS)}.")
    return PRIORS[name]
