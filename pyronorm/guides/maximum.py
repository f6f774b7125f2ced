"""The most probable latents: a point that is learned."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import Delta
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Independent, Law
from pyronorm.model import NormalizationModel

__all__ = ["MAP"]


class MAP(Guide):
    r"""A point that is learned: the maximum of the posterior density.

    The density is that of :math:`z = (\text{shift}, \log\text{scale})`, so the ELBO is
    :math:`\log p(y | z) + \log p(z)` up to nothing but the mini-batch: the ``log_density`` of the
    point is the Jacobian of the exponential. :func:`pyronorm.find_mode` finds the maximum by all data,
    :func:`pyronorm.fit` by steps.

    Parameters, each of shape ``(channel,)``: ``shift_loc`` and ``log_scale_loc``. They start at the
    neutral values.

    Args:
        model: the model whose latents to find.
    """

    is_point: ClassVar[bool] = True

    @checked
    def __init__(self, model: NormalizationModel | LatentNetwork) -> None:
        super().__init__(model)
        self.shift_loc = nn.Parameter(self._vector(0.0, "shift"))
        self.log_scale_loc = nn.Parameter(self._vector(0.0, "log_scale"))

    @property
    def loc(self) -> Tensor:
        """Shifts and log scales in one vector, shape ``(2 * channel,)``."""
        return torch.cat([self.shift_loc, self.log_scale_loc]).detach()

    def law(self) -> Law:
        """Two points."""
        log_scale = self.log_scale_loc
        shift = self.shift_loc + 0  # a view of a parameter asks for gradients, no_grad or not
        return Independent(
            Delta(shift, event_dim=1),
            Delta(log_scale.exp(), log_density=-log_scale.sum(-1), event_dim=1),
        )
