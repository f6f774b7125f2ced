"""What a prior is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import Count, check_fields, checked
from pyronorm.errors import OptionError
from pyronorm.latents import Draws, HasLatents, LatentSpace
from pyronorm.latents.draws import check_draws
from pyronorm.laws import Law
from pyronorm.randomness import Seed, seeded

__all__ = ["Prior"]


class Prior(ABC):
    r"""A law of ``shift`` and ``scale`` for every latent space.

    A subclass is a frozen dataclass of settings and says its law in :meth:`law`; Pyro sites, draws and
    densities follow from that. Hyperparameters of its own are a part of the law
    (:class:`~pyronorm.laws.Hierarchical`); they are Pyro sites like the latents, so a posterior may
    have them as well.
    """

    is_proper: ClassVar[bool] = True
    """Whether the prior has draws."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_of_numbers(self) -> bool:
        """Whether its settings are numbers and words, so that nothing in it can change."""
        kind: Any = type(self)
        if not is_dataclass(kind):
            return False
        values = (getattr(self, field.name) for field in fields(kind))
        return all(isinstance(value, (int, float, str, Enum, NoneType)) for value in values)

    @abstractmethod
    def law(self, space: LatentSpace, like: Tensor) -> Law:
        """The law of the latents of a space.

        Args:
            space: the layers and channels, and the prefix of the sites.
            like: gives device and dtype; its values and shape do not matter.

        Returns:
            A law of ``space.num_channels`` channels, such as
            ``Independent(shift, scale)`` of two Pyro distributions with event shape ``(channel,)``.
        """

    @checked
    def sample(self, space: LatentSpace, like: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the Pyro sites: the hyperparameters, then ``shift`` and ``scale``.

        Args:
            space: the layers and channels, and the prefix of the sites.
            like: gives device and dtype.

        Returns:
            ``shift`` and ``scale``, with the plates around the call in front.
        """
        values = self.law(space, like).sample(space)
        return values[space.shift_site], values[space.scale_site]

    @torch.no_grad()
    @checked
    def draws(self, model: HasLatents, num_samples: Count, seed: Seed = None) -> Draws:
        """Draw latents and hyperparameters, without Pyro.

        A prior is no posterior; ``pyronorm.predict(model, pyronorm.guides.Fixed(model, prior), x)`` is
        its predictive distribution.

        Args:
            model: the model whose latents to draw.
            num_samples: number of independent draws.
            seed: see :func:`pyronorm.randomness.seeded`.

        Returns:
            The draws; ``log_density`` is their log prior density.

        Raises:
            OptionError: if the prior is improper, or ``num_samples`` below 1.
            SizeError: if there is no memory for so many draws.
        """
        like = model.network.like
        check_draws(type(self).__name__, num_samples, model.space, like)
        with seeded(seed, like):
            return self.law(model.space, like).draw(num_samples)

    @checked
    def log_prob(
        self,
        space: LatentSpace,
        shift: Float[Tensor, "*sample channel"],
        scale: Float[Tensor, "*sample channel"],
        hyper: Mapping[str, Tensor],
    ) -> Float[Tensor, "*sample"]:
        """Log density of latents and hyperparameters; of the latents alone where those are missing.

        Args:
            space: the layers and channels.
            shift: packed shifts.
            scale: packed scales.
            hyper: values of the hyperparameters' sites, each of shape ``(*sample, group)``; without
                them (a bank knows none) they are integrated out.
        """
        law = self.law(space, shift)
        if not law.hyper.keys() <= hyper.keys():
            return self.marginal_log_prob(space, shift, scale)
        return law.log_prob(shift, scale, hyper)

    @checked
    def marginal_log_prob(
        self,
        space: LatentSpace,
        shift: Float[Tensor, "*sample channel"],
        scale: Float[Tensor, "*sample channel"],
    ) -> Float[Tensor, "*sample"]:
        """Log density of the latents, hyperparameters integrated out.

        Args:
            space: the layers and channels.
            shift: packed shifts.
            scale: packed scales.

        Raises:
            OptionError: if a prior of your own has hyperparameters and does not define this.
        """
        law = self.law(space, shift)
        if law.hyper:
            raise OptionError(
                f"{type(self).__name__} has hyperparameters and does not say how to integrate them "
                "out: define marginal_log_prob, or use a posterior that has them."
            )
        return law.log_prob(shift, scale)

    def report(
        self, space: LatentSpace, hyper: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
        """What to report of the hyperparameters, by name: values and a label for each.

        Args:
            space: the layers and channels.
            hyper: values of the hyperparameters' sites, each of shape ``(*sample, group)``; empty
                for posteriors without them.

        Returns:
            Values of shape ``(*sample, group)`` and ``group`` labels.
        """
        return {}

    def settings(self) -> dict[str, Any]:
        """The arguments that make this prior again, ``type(prior)(**settings)``; ready for JSON.

        Raises:
            OptionError: if a prior of your own is no dataclass.
        """
        kind: Any = type(self)
        if not is_dataclass(kind):
            raise OptionError(
                f"{kind.__name__}: a prior is a frozen dataclass of settings; put "
                "@dataclass(frozen=True) before the class."
            )
        values = {field.name: getattr(self, field.name) for field in fields(kind)}
        return {k: v.value if isinstance(v, Enum) else v for k, v in values.items()}
