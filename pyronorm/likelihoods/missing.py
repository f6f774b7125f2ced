"""Values that are missing: masked, so that they have no part in densities or gradients."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to

from pyronorm.errors import DataError
from pyronorm.likelihoods.later import require
from pyronorm.likelihoods.mixture import unwrap

__all__ = ["Weighted", "check_vectors", "fill", "mask_values"]


class Weighted(TorchDistribution):
    """A distribution whose log density counts as often as the weight of a value says.

    Args:
        base_dist: the distribution.
        weight: broadcasts with its batch shape.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own name

    def __init__(self, base_dist: TorchDistributionMixin, weight: Tensor) -> None:
        self.base_dist = base_dist
        self.weight = weight
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """That of the distribution."""
        return self.base_dist.support  # type: ignore[no-any-return]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Weights don't change what is drawn."""
        return self.base_dist.sample(sample_shape)  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """The weighted log density."""
        return self.base_dist.log_prob(value) * self.weight  # type: ignore[no-any-return]


def fill(distribution: Distribution, y: Tensor, observed: Tensor) -> Tensor:
    """Put a possible value where there is none: log densities there are masked, but must be finite.

    Args:
        distribution: of ``y``.
        y: the data.
        observed: where there are some, of the shape of ``y``.
    """
    base = unwrap(distribution)
    support = base.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        possible = y.new_zeros(()) + getattr(support, "lower_bound", 0)
    else:
        transform = transform_to(support)
        shape = transform.inverse_shape(base.event_shape)
        possible = transform(torch.zeros(shape, dtype=y.dtype, device=y.device))
    return torch.where(observed, y, possible)


def check_vectors(distribution: Distribution, observed: Tensor, where: str) -> None:
    """Refuse values that are vectors and missing in part.

    Args:
        distribution: of the data.
        observed: what is observed, of the shape of the data.
        where: who asks, for the message.

    Raises:
        DataError: if a vector is observed in part.
    """
    base = unwrap(distribution)
    flat = observed.flatten(observed.ndim - len(base.event_shape)) if base.event_shape else None
    if flat is not None:
        require(
            (flat.any(-1) == flat.all(-1)).all(),
            lambda: DataError(
                f"{where}: a value of {type(base).__name__} is a vector; one is missing in part. Set "
                "all of it to missing, or take a likelihood of independent values."
            ),
        )


def mask_values(distribution: TorchDistributionMixin, observed: Tensor) -> TorchDistributionMixin:
    """Mask the log density of single values; a vector that is missing in part is missing.

    Args:
        distribution: of the data.
        observed: what is observed, of the shape of the data.
    """
    base = unwrap(distribution)
    reinterpreted = len(distribution.event_shape) - len(base.event_shape)
    if base.event_shape:
        observed = observed.flatten(observed.ndim - len(base.event_shape)).all(-1)
    return base.mask(observed).to_event(reinterpreted)  # type: ignore[no-any-return]
