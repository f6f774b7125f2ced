r"""The effective batch size: how many independent values would scatter as much.

With :math:`u = 1/\text{scale}^2`, the law of batch noise (:mod:`pyronorm.stats.batch_noise`) is an
exponential family in ``n`` whose sufficient statistic is the mean of

.. math::
    d = \text{shift}^2 + u - 1 - \log u \;\ge\; 0, \qquad
    \mathbb E\, d = g(n) := \log\tfrac n2 - \psi\!\left(\tfrac{n-1}2\right) \approx \tfrac 2n .

Setting the derivative of the log likelihood to zero gives :math:`g(\hat n) = \bar d`, and :math:`g`
falls from infinity to 0: the maximum likelihood estimate exists, is unique, and moments and maximum
likelihood agree. About half of :math:`\bar d` is the scatter of the shift, half that of the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Normal

from pyronorm.checks import Probability, checked
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError, ShapeError

__all__ = ["EffectiveBatchSizes", "effective_batch_size", "size_of_discrepancy"]

# Beyond that, differences of digamma cancel in float64; less noise than that is none.
_LARGEST = 1e9


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class EffectiveBatchSizes:
    """Effective batch sizes with intervals.

    Attributes:
        estimate: maximum likelihood estimate of ``n`` for each group, shape ``(group,)``, float64;
            ``inf`` where there is no noise.
        lower: lower end of the interval.
        upper: upper end of the interval.
        confidence: the intervals' nominal coverage, each on its own.
    """

    estimate: Float[Tensor, " group"]
    lower: Float[Tensor, " group"]
    upper: Float[Tensor, " group"]
    confidence: Probability


def size_of_discrepancy(d: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Solve :math:`\log\frac n2 - \psi(\frac{n-1}2) = d` for ``n`` > 1.

    Args:
        d: mean of :math:`\text{shift}^2 + u - 1 - \log u`, at least 0, any shape.

    Returns:
        ``n`` in float64; ``inf`` for ``d`` = 0, and beyond ten to the ninth.
    """
    d = d.double()
    # Bisection over log(n - 1): g is monotone, and this needs no good start.
    low = torch.full_like(d, -30.0)
    high = torch.full_like(d, 21.0)
    for _ in range(80):
        middle = (low + high) / 2
        df = middle.exp()
        too_small = torch.log((1 + df) / 2) - torch.digamma(df / 2) > d
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    n = 1 + ((low + high) / 2).exp()
    return torch.where(n < _LARGEST, n, torch.inf)


@checked
def effective_batch_size(
    shift: Float[Tensor, "row channel"],
    scale: Float[Tensor, "row channel"],
    groups: Int[Tensor, " channel"],
    confidence: Probability = 0.95,
) -> EffectiveBatchSizes:
    r"""Estimate the ``n`` of the law of batch noise from draws of the latents.

    The maximum likelihood estimate (formulas at the top of the module). Reference statistics are
    taken as exact: a shift that is not centred at 0 counts as noise. The interval is normal for the
    logarithm of :math:`\bar d`, with the standard error over *rows*, so channels of a row may depend
    on each other and values need not be Gaussian; the rows have to be independent.

    Args:
        shift: draws, shape ``(row, channel)``; NaN in channels that are left out.
        scale: draws, positive, of the same shape.
        groups: for each channel the number of its group (:meth:`pyronorm.latents.Per.groups`).
        confidence: nominal coverage of each interval.

    Returns:
        Estimates and intervals, one for each group.

    Raises:
        ShapeError: if the shapes do not fit.
        OptionError: if there are fewer than 2 rows, or ``confidence`` is not inside (0, 1).
    """
    if shift.shape != scale.shape or groups.shape != shift.shape[-1:]:
        raise ShapeError(
            "effective_batch_size: expected shift and scale of one shape (row, channel) and groups of "
            f"shape (channel,), got {tuple(shift.shape)}, {tuple(scale.shape)} and "
            f"{tuple(groups.shape)}."
        )
    if len(shift) < 2:
        raise OptionError(f"effective_batch_size: needs at least 2 rows, got {len(shift)}.")
    if bool((scale <= 0).any()):
        raise DataError("effective_batch_size: scales must be above 0.")
    shift, log_u = shift.double(), -2 * scale.double().log()
    d = shift.square() + torch.expm1(log_u) - log_u
    known = d.isfinite().all(0)
    index = groups.to(d.device)
    size = int(groups.max()) + 1
    count = d.new_zeros(size).index_add(0, index[known], d.new_ones(int(known.sum())))
    rows = d.new_zeros(len(d), size).index_add(1, index[known], d[:, known]) / count.clamp(min=1)
    mean = rows.mean(0)
    error = rows.std(0) / len(rows) ** 0.5
    quantile = float(Normal(0.0, 1.0).icdf(torch.tensor(0.5 + confidence / 2, dtype=d.dtype)))
    factor = torch.exp(quantile * torch.nan_to_num(error / mean, nan=0.0))
    estimate, lower, upper = size_of_discrepancy(torch.stack([mean, mean * factor, mean / factor]))
    return EffectiveBatchSizes(estimate, lower, upper, confidence)
