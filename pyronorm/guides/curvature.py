"""How the log likelihood bends around a point of the latents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import Finite, Natural, check_fields, checked
from pyronorm.display import displayed
from pyronorm.errors import OptionError, ShapeError, StatisticsError
from pyronorm.latents import HasLatents, LatentNetwork, LatentSpace

__all__ = ["Curvature"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Curvature:
    r"""The generalized Gauss-Newton matrix of the data in the latents, at a point.

    .. math::
        G = \sum_i J_i^\top \Lambda_i J_i = F^\top F + \mathrm{diag}(r), \qquad
        z = (\text{shift}, \log\text{scale})

    with the Jacobian :math:`J_i` of the network's output in ``z`` and the curvature
    :math:`\Lambda_i` of the log likelihood in that output. The rows of ``F`` are orthogonal, the
    longest first. Whole, ``F`` has as many rows as there are latents and ``r`` is 0; of low rank
    ``F`` has the leading rows, and ``r`` what they lack of the diagonal of ``G``; with no row it is
    the diagonal. Collected by :func:`pyronorm.collect_curvature`.

    Attributes:
        space: the layers and channels of the network.
        mode: the point, shifts first, shape ``(latent,)``.
        factor: ``F``, shape ``(row, latent)``.
        rest: ``r``, shape ``(latent,)``.
        log_likelihood: of the data at the point, in nats.
        weights: a hash of the network's weights.

    Raises:
        ShapeError: if the shapes disagree.
    """

    space: LatentSpace
    mode: Float[Tensor, " latent"]
    factor: Float[Tensor, "row latent"]
    rest: Float[Tensor, " latent"]
    log_likelihood: Finite
    weights: Natural = 0

    def __post_init__(self) -> None:
        check_fields(self)
        size = 2 * self.space.num_channels
        for name in ("mode", "factor", "rest"):
            shape = getattr(self, name).shape
            if shape[-1:] != (size,):
                raise ShapeError(
                    f"Curvature: {name} must have {size} latents on the last axis, shifts and log "
                    f"scales of {size // 2} channels, got shape {tuple(shape)}."
                )

    def __repr__(self) -> str:
        """Say of what, and its rank."""
        rows, size = self.factor.shape
        kind = "whole" if self.is_whole else f"rank {rows}" if rows else "diagonal"
        return f"Curvature({kind}, {size} latents, {self.mode.device})"

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.factor.shape[0] == self.factor.shape[1]

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of the matrix, shape ``(latent,)``; exact for every rank."""
        return self.factor.square().sum(0) + self.rest

    @checked
    def truncated(self, rank: Natural) -> Curvature:
        """The same with fewer rows; what they had of the diagonal goes into ``rest``.

        Args:
            rank: rows to keep, at most those there are; 0 for the diagonal.

        Raises:
            OptionError: if there are not that many.
        """
        if not 0 <= rank <= len(self.factor):
            raise OptionError(
                f"Curvature.truncated: rank must be between 0 and {len(self.factor)}, the rows that "
                f"there are, got {rank}."
            )
        left = self.factor[rank:].square().sum(0)
        return replace(self, factor=self.factor[:rank], rest=self.rest + left)

    def log_det(self, prior_precision: float) -> float:
        r""":math:`\log\det(G + \delta I)`.

        Args:
            prior_precision: :math:`\delta` > 0.
        """
        factor = self.factor.double()
        if self.is_whole:
            return float((factor.square().sum(1) + prior_precision).log().sum())
        diagonal = self.rest.double() + prior_precision
        scaled = factor * diagonal.rsqrt()
        inner = scaled @ scaled.T + torch.eye(len(scaled)).to(scaled)
        return float(diagonal.log().sum() + torch.linalg.slogdet(inner).logabsdet)

    def check(self, model: HasLatents | LatentNetwork, where: str) -> None:
        """Refuse another network, and other weights.

        Raises:
            ShapeError: if layers or channels differ.
            StatisticsError: if the weights do.
        """
        network = model if isinstance(model, LatentNetwork) else model.network
        mine = [(x.name, x.num_channels) for x in self.space.layers]
        theirs = [(x.name, x.num_channels) for x in network.space.layers]
        if mine != theirs:
            raise ShapeError(
                f"{where}: the curvature is of another network; it has the layers {mine}, the model "
                f"has {theirs}."
            )
        if self.weights and self.weights != network.weights():
            raise StatisticsError(
                f"{where}: the curvature is of other weights than the network has now. Collect it "
                "again, pyronorm.collect_curvature(model, train_data)."
            )
