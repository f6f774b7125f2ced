"""Curvature of a log likelihood in the network's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods.mixture import unwrap

if TYPE_CHECKING:
    from pyronorm.likelihoods.base import Likelihood

__all__ = ["expected_curvature"]


def expected_curvature(likelihood: Likelihood, output: Tensor) -> Tensor:
    """See :meth:`pyronorm.likelihoods.Likelihood.curvature`."""
    where = type(likelihood).__name__
    if output.ndim != 2:
        raise ShapeError(
            f"{where}: the curvature is of outputs of shape (batch, out), got {tuple(output.shape)}."
        )
    with torch.enable_grad():
        there, here = output.detach().clone().requires_grad_(), output.detach()
        pair = (unwrap(likelihood.distribution(f)) for f in (here, there))
        try:
            divergence = kl_divergence(*pair).sum()
        except NotImplementedError:
            kind = type(unwrap(likelihood.distribution(here))).__name__
            raise OptionError(
                f"{where}: the curvature comes from the Kullback-Leibler divergence, and torch knows "
                f"none of {kind}. Say Likelihood.curvature yourself."
            ) from None
        (slope,) = torch.autograd.grad(divergence, there, create_graph=True)
        rows = [
            torch.autograd.grad(slope[:, k].sum(), there, retain_graph=True)[0]
            for k in range(output.shape[1])
        ]
    return torch.stack(rows, 1)
