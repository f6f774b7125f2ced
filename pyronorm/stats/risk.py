"""Risk of the examples that are kept when the most uncertain are rejected."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["risk_by_rank"]


def risk_by_rank(
    uncertainty: Tensor, loss: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean loss of the examples up to each rank of uncertainty.

    Examples of equal uncertainty come in random order; the risk is the expectation over it.

    Args:
        uncertainty: of each example, one axis.
        loss: of each example.
        weight: how often each example counts; None for once.

    Returns:
        The risks, from the most certain example to all of them, and the share of the whole weight that
        each example adds there, both in float64.
    """
    loss = loss.double()
    weight = torch.ones_like(loss) if weight is None else weight.double()
    level, index = torch.unique(uncertainty, return_inverse=True)
    of_level = torch.zeros(len(level), dtype=loss.dtype, device=loss.device)
    total = of_level.index_add(0, index, weight)
    tied = of_level.index_add(0, index, weight * loss) / total.clamp(
        min=torch.finfo(total.dtype).tiny
    )
    order = index.argsort(stable=True)
    weight = weight[order]
    reached = weight.cumsum(0)
    risk = (weight * tied[index[order]]).cumsum(0) / reached.clamp(min=torch.finfo(loss.dtype).tiny)
    return risk, weight / reached[-1]
