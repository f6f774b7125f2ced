"""Soft labels: probabilities in the place of a class, for training."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyronorm.errors import DataError
from pyronorm.likelihoods.later import require

__all__ = ["SoftClasses", "check_soft"]

_TOLERANCE = 1e-3  # of a sum of probabilities, in half precision as well


class SoftClasses(TorchDistribution):
    r"""Classes that are known as probabilities: :math:`\log p(y) = \sum_k w_k y_k \log p_k`.

    The expected log probability of a class drawn from :math:`y`, which is a class's own where ``y`` is
    one-hot. Positions whose ``y`` is NaN are missing. It is not normalized over ``y``, and cannot draw.

    Args:
        log_p: log probabilities, ``(*samples, batch, class, *spatial)``.
        num_sample_dims: the number of axes in ``samples``.
        weight: of the classes, ``(class,)``; None for 1.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own name

    def __init__(
        self, log_p: Tensor, num_sample_dims: int = 0, weight: Tensor | None = None
    ) -> None:
        self.log_p, self.weight = log_p, weight
        batch = log_p.shape[: num_sample_dims + 1]
        super().__init__(batch, log_p.shape[num_sample_dims + 1 :], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real numbers: what are probabilities is checked with the data."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The expected log probability."""
        if self.weight is not None:
            shape = (-1, *(1,) * (len(self.event_shape) - 1))
            value = value * self.weight.to(value.dtype).reshape(shape)
        # A class of no probability has no part, however impossible it is; nor has a missing one.
        has = value > 0
        value = torch.where(has, value, 0).to(self.log_p.dtype)
        terms = torch.where(has, value * self.log_p, 0)
        return terms.flatten(len(self.batch_shape)).sum(-1)


def check_soft(y: Tensor, where: str) -> None:
    """Refuse what are no probabilities over axis 1, or NaN in all of them.

    Args:
        y: shape ``(batch, class, *spatial)``.
        where: who asks, for the message.

    Raises:
        DataError: if they are not.
    """
    missing = y.isnan().all(1)
    good = (y >= 0).all(1) & ((y.sum(1) - 1).abs() < _TOLERANCE)
    require(
        (good | missing).all(),
        lambda: DataError(
            f"{where}: soft labels must be probabilities, not negative and with the sum 1 over the "
            f"classes, axis 1 of y of shape {tuple(y.shape)}; a missing one is NaN for all classes."
        ),
    )
