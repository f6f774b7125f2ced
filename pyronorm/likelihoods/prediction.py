"""What a likelihood predicts, averaged over draws of the latents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyronorm.errors import DataError, OptionError
from pyronorm.likelihoods.mixture import entropies, mixture_moments

if TYPE_CHECKING:
    from pyronorm.likelihoods.base import Likelihood

__all__ = ["Prediction"]


@dataclass(frozen=True, eq=False)
class Prediction:
    r"""The posterior predictive distribution of each example: the mixture over draws.

    :math:`p(y | x) = \frac1S\sum_s p(y | x, z_s)`. Shapes are those the likelihood says: for
    :class:`~pyronorm.likelihoods.Categorical` means are probabilities ``(batch, *spatial, class)`` and
    entropies ``(batch, *spatial)``.

    Made by :meth:`pyronorm.likelihoods.Likelihood.predict`.

    Attributes:
        likelihood: a copy of the likelihood, as it was.
        mean: predictive mean, averaged over draws.
        variance: predictive variance, noise included.
        entropy: of the predictive distribution, in nats: the total uncertainty.
        mutual_information: between the data and the latents, in nats: what knowing the latents would
            tell, the epistemic part of ``entropy``.
        outputs: the network's output given each draw, ``(sample, batch, *out)``; None if not kept.
    """

    likelihood: Likelihood
    mean: Tensor
    variance: Tensor
    entropy: Tensor
    mutual_information: Tensor
    outputs: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, likelihood: Likelihood, output: Tensor, *, keep_samples: bool) -> Prediction:
        """The mixture over draws; see :meth:`pyronorm.likelihoods.Likelihood.predict`.

        Raises:
            ShapeError: if the output has not the axes that the likelihood needs.
        """
        distribution = likelihood.distribution(output, 1)
        mean, variance = mixture_moments(distribution)
        entropy, information = entropies(distribution)
        kept = output.detach() if keep_samples else None
        frozen = copy.deepcopy(likelihood).requires_grad_(False)
        return cls(frozen, mean, variance, entropy, information, kept)

    @classmethod
    def join(cls, parts: Sequence[Prediction]) -> Prediction:
        """The predictions of several batches as one.

        Args:
            parts: of one likelihood and the same draws.

        Raises:
            DataError: if there are none.
        """
        if not parts:
            raise DataError("data: there is no batch.")
        kept = [part.outputs for part in parts if part.outputs is not None]
        return cls(
            parts[0].likelihood,
            torch.cat([part.mean for part in parts]),
            torch.cat([part.variance for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat([part.mutual_information for part in parts]),
            torch.cat(kept, 1) if len(kept) == len(parts) else None,
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.mean)

    @property
    def samples(self) -> Tensor | None:
        """The mean given each draw, ``(sample, batch, ...)``; None if outputs are not kept."""
        return None if self.outputs is None else self.likelihood.expected(self.outputs, 1)

    def _kept(self, what: str) -> Tensor:
        if self.outputs is None:
            raise OptionError(
                f"{what}: the prediction has no samples; predict with keep_samples=True."
            )
        return self.outputs
