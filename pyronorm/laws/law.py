"""What a law is: how shift and scale are drawn, and what their density is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Delta, LogNormal, Normal, TransformedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, transforms
from torch.distributions import Independent as TorchIndependent

from pyronorm.distributions import DrawsOnly
from pyronorm.errors import NoDensityError, OptionError, ShapeError
from pyronorm.latents import Draws, LatentSpace

__all__ = [
    "Hierarchical",
    "Independent",
    "Joint",
    "Law",
    "Rows",
    "ScaleGivenShift",
    "ShiftGivenScale",
]


@runtime_checkable
class Choose(Protocol):
    """What gives a value to a variable of a law: a Pyro site, a draw, or a given value."""

    def __call__(self, name: str, fn: Any, *, auxiliary: bool = False) -> Tensor:
        """Return the value of a variable that is distributed like ``fn``."""


class Law(ABC):
    r"""A distribution of ``shift`` and ``scale``, and of hyperparameters where it has some.

    A prior is a law for every latent space, a guide has one at each moment of its training. A law
    says once how its variables follow from each other, in :meth:`run`; the Pyro sites, draws without
    Pyro and the log density are three readings of that. Laws are values: they are made anew whenever
    a parameter may have changed, and nobody has to subclass this.
    """

    @property
    def has_density(self) -> bool:
        """Whether the latents have a log density."""
        return True

    @property
    def hyper(self) -> Mapping[str, Any]:
        """The distributions of the hyperparameters by site name; none as a rule."""
        return {}

    @abstractmethod
    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Give all variables their values, in order.

        Args:
            choose: called with the name and the distribution of a variable; returns its value.

        Returns:
            ``shift`` and ``scale``.
        """

    def sample(self, space: LatentSpace) -> dict[str, Tensor]:
        """Sample the Pyro sites: hyperparameters, auxiliary ones, ``shift`` and ``scale``.

        Args:
            space: gives the names of the sites.

        Returns:
            The values of hyperparameters and latents by site name, with the plates around the call
            in front.
        """
        hyper = self.hyper
        values: dict[str, Tensor] = {}

        def choose(name: str, fn: Any, *, auxiliary: bool = False) -> Tensor:
            if name in hyper:
                # Tells init_to_neutral where to start: the zero of log space is arbitrary.
                start: Any = {"neutral": fn.mean}
                values[name] = pyro.sample(name, fn, infer=start)
                return values[name]
            # Tells to_arviz whose channels these are.
            infer: Any = {"is_auxiliary": True} if auxiliary else {"latent_space": space}
            value: Tensor = pyro.sample(f"{space.prefix}{name}", fn, infer=infer)
            return value

        shift, scale = self.run(choose)
        return {**values, space.shift_site: shift, space.scale_site: scale}

    def draw(self, num_samples: int) -> Draws:
        """Draw without Pyro; gradients pass through where the distributions let them.

        Args:
            num_samples: number of independent draws.

        Returns:
            The draws, with their log density if there is one.
        """
        hyper: dict[str, Tensor] = {}
        terms: list[Tensor] = []

        def choose(name: str, fn: Any, *, auxiliary: bool = False) -> Tensor:
            if fn.batch_shape != (num_samples,):
                fn = fn.expand((num_samples,))
            value: Tensor = fn.rsample() if fn.has_rsample else fn.sample()
            if self.has_density:
                terms.append(fn.log_prob(value))
            if name in self.hyper:
                hyper[name] = value
            return value

        shift, scale = self.run(choose)
        density = torch.stack(terms).sum(0) if self.has_density else None
        return Draws(shift, scale, density, hyper)

    def log_prob(
        self,
        shift: Float[Tensor, "*sample channel"],
        scale: Float[Tensor, "*sample channel"],
        hyper: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "*sample"]:
        """Log density in nats, of the latents and of the hyperparameters together.

        Args:
            shift: packed shifts.
            scale: packed scales.
            hyper: the values of the hyperparameters by site name, each ``(*sample, group)``; needed
                where the law has some.

        Raises:
            NoDensityError: if there is no density.
            OptionError: if hyperparameters are missing.
        """
        if not self.has_density:
            raise NoDensityError(f"{self!r}: the latents have no density.")
        given = {"shift": shift, "scale": scale, **(hyper or {})}
        missing = [name for name in self.hyper if name not in given]
        if missing:
            raise OptionError(
                f"{type(self).__name__}.log_prob: needs the hyperparameters {missing} as well, "
                "hyper={name: value}."
            )
        terms: list[Tensor] = []

        def choose(name: str, fn: Any, *, auxiliary: bool = False) -> Tensor:
            value = torch.cat([shift, scale], -1) if auxiliary else given[name]
            terms.append(fn.log_prob(value))
            return value

        self.run(choose)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def marginals(self) -> tuple[Any, Any]:
        """The distributions of ``shift`` and of ``scale``, each without the other.

        Raises:
            OptionError: if they have no closed form.
        """
        raise OptionError(
            f"{type(self).__name__}: the distribution of single latents has no closed form here, "
            "so there are no exact medians and quantiles. Take those of draws: "
            "torch.quantile(posterior.draw(model, 1000).scale, q, dim=0)."
        )

    def entropy(self) -> Tensor:
        """Entropy of the latents in nats.

        Raises:
            OptionError: if it has no closed form.
        """
        raise OptionError(
            f"{type(self).__name__}: the entropy has no closed form here. Estimate it by draws: "
            "-posterior.draw(model, 1000).log_density.mean()."
        )

    def quantiles(self, q: Float[Tensor, " level"]) -> tuple[Tensor, Tensor]:
        """Quantiles of each latent.

        Args:
            q: levels between 0 and 1.

        Returns:
            Those of shift and of scale, each of shape ``(level, channel)``.

        Raises:
            OptionError: if they have no closed form.
        """
        shift, scale = self.marginals()
        return quantiles_of(shift, q), quantiles_of(scale, q)


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
        marginal: the distribution of the scale alone, where it is known.
    """

    shift: Any
    scale: Callable[[Tensor], Any]
    marginal: Any = None

    def __post_init__(self) -> None:
        check_event(self.shift, "shift")

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Shift, then scale."""
        shift = choose("shift", self.shift)
        return shift, choose("scale", check_event(self.scale(shift), "scale"))

    def marginals(self) -> tuple[Any, Any]:
        """The distribution of the shift, and that of the scale if it is known."""
        return (self.shift, self.marginal) if self.marginal is not None else super().marginals()


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
            (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal),
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


def normal(loc: Tensor, std: Tensor) -> TorchDistributionMixin:
    """Independent normal values, event shape ``(channel,)``."""
    fn: TorchDistributionMixin = Normal(loc, std, validate_args=False).to_event(1)
    return fn


def log_normal(loc: Tensor, std: Tensor) -> TorchDistributionMixin:
    """Independent log-normal values, event shape ``(channel,)``."""
    fn: TorchDistributionMixin = LogNormal(loc, std, validate_args=False).to_event(1)
    return fn


def check_event(fn: Any, name: str) -> Any:
    """Refuse what is no distribution of a vector; return it."""
    if not isinstance(fn, TorchDistributionMixin):
        raise OptionError(
            f"law: {name} must be a Pyro distribution (pyro.distributions, not torch's), got "
            f"{type(fn).__name__}."
        )
    if len(fn.event_shape) != 1:
        raise ShapeError(
            f"law: the distribution of {name} must be one of vectors, with event shape (channel,), "
            f"got batch shape {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}. Is "
            ".to_event(1) missing?"
        )
    return fn


def quantiles_of(fn: Distribution, q: Tensor) -> Tensor:
    """Quantiles of each component of a vector of independent values, shape ``(level, component)``.

    Raises:
        OptionError: if the distribution has no quantile function.
    """
    if isinstance(fn, Delta):
        point: Tensor = fn.v
        return point.expand((len(q), *point.shape))
    while isinstance(fn, TorchIndependent):
        fn = fn.base_dist
    try:
        quantiles: Tensor = fn.icdf(q[:, None])
    except NotImplementedError:
        raise OptionError(
            f"{type(fn).__name__} has no quantile function (icdf), so there are no exact medians and "
            "quantiles. Take those of draws: torch.quantile(posterior.draw(model, 1000).scale, q, 0)."
        ) from None
    return quantiles
