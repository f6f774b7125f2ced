"""The kinds of laws: independent, one given the other, joint, rows, hierarchical."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Delta, TransformedDistribution
from torch import Tensor
from torch.distributions import transforms

from pyronorm.checks import check_fields
from pyronorm.distributions import DrawsOnly
from pyronorm.errors import ShapeError
from pyronorm.laws.gaussian import NarrowedNormal
from pyronorm.laws.law import Choose, Law, check_event, check_levels, log_normal, normal

__all__ = [
    "Hierarchical",
    "Independent",
    "Joint",
    "Rows",
    "ScaleGivenShift",
    "ShiftGivenScale",
]


@dataclass(frozen=True, repr=False)
class Independent(Law):
    """Shift and scale independent of each other.

    Args:
        shift: a Pyro distribution with event shape ``(channel,)``.
        scale: the same, on the positive numbers.
    """

    shift: Any
    scale: Any

    def __post_init__(self) -> None:
        check_event(self.shift, "shift")
        check_event(self.scale, "scale")

    @property
    def has_density(self) -> bool:
        """Whether neither is a point."""
        return not isinstance(self.shift, Delta) and not isinstance(self.scale, Delta)

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Shift, then scale."""
        return choose("shift", self.shift), choose("scale", self.scale)

    def marginals(self) -> tuple[Any, Any]:
        """The two distributions."""
        return self.shift, self.scale

    def entropy(self) -> Tensor:
        """Sum of both entropies.

        Raises:
            OptionError: if one has no closed form.
        """
        try:
            total: Tensor = self.shift.entropy() + self.scale.entropy()
        except NotImplementedError:
            return super().entropy()
        return total


@dataclass(frozen=True, repr=False)
class ScaleGivenShift(Law):
    """A shift, and a scale that depends on it.

    Args:
        shift: a Pyro distribution with event shape ``(channel,)``.
        scale: a function of the shifts, which may have axes in front, that returns such a
            distribution.
        marginal: a function that returns the distribution of the scale alone, where it is known.
    """

    shift: Any
    scale: Callable[[Tensor], Any]
    marginal: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_event(self.shift, "shift")

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Shift, then scale."""
        shift = choose("shift", self.shift)
        return shift, choose("scale", check_event(self.scale(shift), "scale"))

    def marginals(self) -> tuple[Any, Any]:
        """The distribution of the shift, and that of the scale if it is known."""
        return super().marginals() if self.marginal is None else (self.shift, self.marginal())


@dataclass(frozen=True, repr=False)
class ShiftGivenScale(Law):
    """A scale, and a shift that depends on it.

    Args:
        shift: a function of the scales, which may have axes in front, that returns a Pyro
            distribution with event shape ``(channel,)``.
        scale: such a distribution.
    """

    shift: Callable[[Tensor], Any]
    scale: Any

    def __post_init__(self) -> None:
        check_fields(self)
        check_event(self.scale, "scale")

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Scale, then shift."""
        scale = choose("scale", self.scale)
        return choose("shift", check_event(self.shift(scale), "shift")), scale


@dataclass(frozen=True, repr=False)
class Joint(Law):
    r"""All latents together: a distribution of the vector :math:`[\text{shift}, \log\text{scale}]`.

    In Pyro an auxiliary site ``latents`` holds ``[shift, scale]`` and carries the density, with the
    Jacobian of the exponential; ``shift`` and ``scale`` are points given it. That is right in every
    ELBO, with or without analytic KL terms.

    Args:
        latents: a Pyro distribution with event shape ``(2 * channel,)``, shifts first.
    """

    latents: Any

    def __post_init__(self) -> None:
        check_event(self.latents, "latents")
        if self.latents.event_shape[0] % 2:
            raise ShapeError(
                "Joint: the distribution must have event shape (2 * channel,), got "
                f"{tuple(self.latents.event_shape)}."
            )

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """The vector, then its halves."""
        size = self.latents.event_shape[0] // 2
        positive = transforms.CatTransform(
            [transforms.identity_transform, transforms.ExpTransform()],
            dim=-1,
            lengths=[size, size],
            # Remembers its last draw, so that a flow's density need not invert the flow.
            cache_size=1,
        )
        latents = choose(
            "latents", TransformedDistribution(self.latents, [positive]), auxiliary=True
        )
        shift, scale = latents.chunk(2, dim=-1)
        return (
            choose("shift", Delta(shift, event_dim=1)),
            choose("scale", Delta(scale, event_dim=1)),
        )

    def marginals(self) -> tuple[Any, Any]:
        """Normal and log-normal, where the vector is Gaussian."""
        gaussian = self.latents
        if not isinstance(
            gaussian,
            (
                torch.distributions.MultivariateNormal,
                torch.distributions.LowRankMultivariateNormal,
                NarrowedNormal,
            ),
        ):
            return super().marginals()
        loc, std = gaussian.mean.chunk(2, -1), gaussian.variance.sqrt().chunk(2, -1)
        return normal(loc[0], std[0]), log_normal(loc[1], std[1])

    def entropy(self) -> Tensor:
        """Entropy of the vector plus the expected logarithm of the Jacobian."""
        try:
            total: Tensor = self.latents.entropy() + self.latents.mean.chunk(2, -1)[1].sum(-1)
        except NotImplementedError:
            return super().entropy()
        return total


@dataclass(frozen=True, repr=False)
class Rows(Law):
    """One of given pairs, each as probable as the others: draws and no density.

    In Pyro an auxiliary site ``row`` is the number of the pair.

    Args:
        shift: shape ``(row, channel)``.
        scale: shape ``(row, channel)``.
        source: what the pairs are from, for error messages.
    """

    shift: Tensor
    scale: Tensor
    source: str

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shift.shape != self.scale.shape or self.shift.ndim != 2 or not len(self.shift):
            raise ShapeError(
                "Rows: shift and scale must have one shape (row, channel), with at least one row, got "
                f"{tuple(self.shift.shape)} and {tuple(self.scale.shape)}."
            )

    @property
    def has_density(self) -> bool:
        """False."""
        return False

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """The number of a pair, then the pair."""
        even = Categorical(logits=self.shift.new_zeros(len(self.shift)), validate_args=False)
        row = choose("row", even, auxiliary=True)
        shift = DrawsOnly(self.shift[row], 1, self.source)
        scale = DrawsOnly(self.scale[row], 1, self.source)
        return choose("shift", shift), choose("scale", scale)

    def quantiles(self, q: Float[Tensor, " level"]) -> tuple[Tensor, Tensor]:
        """Quantiles over the rows, interpolated."""
        check_levels(q)
        return self.shift.quantile(q, dim=0), self.scale.quantile(q, dim=0)


@dataclass(frozen=True, repr=False)
class Hierarchical(Law):
    r"""Hyperparameters, and a law of the latents given them.

    .. math::
        \text{hyper} \sim p, \qquad \text{shift}, \text{scale} \mid \text{hyper} \sim p

    Args:
        hyperparameters: Pyro distributions with event shape ``(group,)`` by site name (with the
            prefix of the space).
        given: makes the law of the latents from the values of the hyperparameters, each
            ``(*sample, group)``.
        density: whether that law has a density.
    """

    hyperparameters: Mapping[str, Any]
    given: Callable[[Mapping[str, Tensor]], Law]
    density: bool = field(default=True)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, fn in self.hyperparameters.items():
            check_event(fn, name)

    @property
    def has_density(self) -> bool:
        """Whether the latents have a density given the hyperparameters."""
        return self.density

    @property
    def hyper(self) -> Mapping[str, Any]:
        """The distributions of the hyperparameters."""
        return self.hyperparameters

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Hyperparameters, then the latents given them."""
        values = {name: choose(name, fn) for name, fn in self.hyperparameters.items()}
        return self.given(values).run(choose)
