"""What a law is: how shift and scale are drawn, and what their density is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Delta, LogNormal, Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import Independent as TorchIndependent

from pyronorm.checks import Count, checked
from pyronorm.errors import NoDensityError, OptionError, ShapeError
from pyronorm.latents import Draws, LatentSpace
from pyronorm.latents.values import check_values

__all__ = ["Choose", "Law", "check_event", "in_full", "log_normal", "normal", "quantiles_of"]


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

    def __repr__(self) -> str:
        """Name its distributions and their sizes."""
        parts: dict[str, Any] = (
            {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}
        )
        shown = (f"{name}={_in_words(part)}" for name, part in parts.items())
        return f"{type(self).__name__}({', '.join(shown)})"

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

    @checked
    def draw(self, num_samples: Count) -> Draws:
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

    @checked
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
            ShapeError: if shapes do not fit each other or the law.
            DataError: if a latent is not finite, or a scale not above 0 (not looked at on a GPU).
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

        where = f"{type(self).__name__}.log_prob"
        if shift.shape != scale.shape:
            raise ShapeError(
                f"{where}: shift and scale must have one shape (..., channel), got "
                f"{tuple(shift.shape)} and {tuple(scale.shape)}."
            )
        check_values(where, shift, scale)

        def choose(name: str, fn: Any, *, auxiliary: bool = False) -> Tensor:
            value = torch.cat([shift, scale], -1) if auxiliary else given[name]
            if value.shape[-1:] != fn.event_shape:
                raise ShapeError(
                    f"{where}: {name} must have {fn.event_shape[0]} values on the last axis, got shape "
                    f"{tuple(value.shape)}."
                )
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

    @checked
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
        check_levels(q)
        return quantiles_of(shift, q), quantiles_of(scale, q)


def _in_words(part: Any) -> str:
    if isinstance(part, Distribution):
        size = f"[{', '.join(map(str, part.event_shape))}]" if part.event_shape else ""
        while isinstance(part, TorchIndependent):
            part = part.base_dist
        return f"{type(part).__name__}{size}"
    if isinstance(part, Tensor):
        return f"tensor of shape {tuple(part.shape)}"
    if isinstance(part, Mapping):
        return f"{{{', '.join(f'{key}: {_in_words(value)}' for key, value in part.items())}}}"
    return repr(part) if isinstance(part, (bool, str)) else type(part).__name__


def normal(loc: Tensor, std: Tensor) -> TorchDistributionMixin:
    """Independent normal values, event shape ``(channel,)``."""
    fn: TorchDistributionMixin = Normal(loc, std, validate_args=False).to_event(1)
    return fn


def in_full(*parameters: Tensor) -> tuple[Tensor, ...]:
    """Parameters of a law in single precision or more: densities need all their digits."""
    return tuple(p.to(torch.promote_types(p.dtype, torch.float32)) for p in parameters)


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


def check_levels(q: Tensor) -> None:
    """Refuse what are no levels of quantiles."""
    if not bool(((q >= 0) & (q <= 1)).all()):
        raise OptionError(f"quantiles: levels must be between 0 and 1, got {q.tolist()}.")


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
