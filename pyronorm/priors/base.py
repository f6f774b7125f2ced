"""What a prior is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.errors import OptionError
from pyronorm.latents import LatentSpace

__all__ = ["IndependentPrior", "Prior"]


class Prior(ABC):
    r"""A distribution of ``shift`` and ``scale``, perhaps with hyperparameters of its own.

    .. math::
        \text{hyper} \sim p, \qquad \text{shift}, \text{scale} \mid \text{hyper} \sim p

    Hyperparameters are Pyro sites like the latents, so a posterior may have them as well. A prior
    without them is an :class:`IndependentPrior`.
    """

    is_proper: ClassVar[bool] = True
    """Whether the prior has draws."""

    def hyperprior(self, space: LatentSpace, like: Tensor) -> dict[str, TorchDistributionMixin]:
        """The distributions of the hyperparameters by site name; none as a rule.

        Args:
            space: the layers and channels, and the prefix of the sites.
            like: gives device and dtype.

        Returns:
            Distributions with event shape ``(group,)``, on the positive numbers.
        """
        return {}

    @abstractmethod
    def conditional(
        self, space: LatentSpace, like: Tensor, hyper: Mapping[str, Tensor]
    ) -> tuple[TorchDistributionMixin, TorchDistributionMixin]:
        """The distributions of ``shift`` and of ``scale`` given the hyperparameters.

        Args:
            space: the layers and channels.
            like: gives device and dtype.
            hyper: values of :meth:`hyperprior`'s sites, each of shape ``(*sample, group)``.

        Returns:
            Two independent distributions with event shape ``(channel,)``.
        """

    def sample(self, space: LatentSpace, like: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the Pyro sites: the hyperparameters, then ``shift`` and ``scale``.

        Args:
            space: the layers and channels, and the prefix of the sites.
            like: gives device and dtype.

        Returns:
            ``shift`` and ``scale``, with the plates around the call in front.
        """
        hyper = {}
        for name, fn in self.hyperprior(space, like).items():
            # Tells init_to_neutral where to start: the zero of log space is arbitrary.
            start: Any = {"neutral": fn.mean}
            hyper[name] = pyro.sample(name, fn, infer=start)
        shift, scale = self.conditional(space, like, hyper)
        return pyro.sample(space.shift_site, shift), pyro.sample(space.scale_site, scale)

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
        hyperprior = self.hyperprior(space, shift)
        if not hyperprior.keys() <= hyper.keys():
            return self.marginal_log_prob(space, shift, scale)
        of_shift, of_scale = self.conditional(space, shift, hyper)
        log_prob: Tensor = of_shift.log_prob(shift) + of_scale.log_prob(scale)
        for name, fn in hyperprior.items():
            log_prob = log_prob + fn.log_prob(hyper[name])
        return log_prob

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
        if self.hyperprior(space, shift):
            raise OptionError(
                f"{type(self).__name__} has hyperparameters and does not say how to integrate them "
                "out: define marginal_log_prob, or use a posterior that has them."
            )
        return self.log_prob(space, shift, scale, {})

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


class IndependentPrior(Prior):
    """A distribution of ``shift`` and ``scale``, the same and independent for every channel."""

    @abstractmethod
    def distributions(
        self, num_channels: int, like: Tensor
    ) -> tuple[TorchDistributionMixin, TorchDistributionMixin]:
        """The distributions of ``shift`` and of ``scale``.

        Args:
            num_channels: length of both.
            like: gives device and dtype.

        Returns:
            Two independent distributions with event shape ``(num_channels,)``.
        """

    def conditional(
        self, space: LatentSpace, like: Tensor, hyper: Mapping[str, Tensor]
    ) -> tuple[TorchDistributionMixin, TorchDistributionMixin]:
        """The distributions themselves: there are no hyperparameters."""
        return self.distributions(space.num_channels, like)
