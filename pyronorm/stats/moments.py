"""Biased moments per channel, and how moments of parts add up to moments of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import checked

__all__ = ["Moments", "channel_moments", "merge_moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Count, mean and *biased* variance (divisor ``count``) of one channel each.

    Attributes:
        count: elements per channel.
        mean: shape ``(channel,)``.
        var: shape ``(channel,)``, divided by ``count`` and not by ``count - 1``.
        cov: biased covariances within groups of consecutive channels, shape ``(group, dim, dim)``
            with ``group * dim`` channels and ``var`` on the diagonals; None where nobody needs them.
    """

    count: int
    mean: Float[Tensor, " channel"]
    var: Float[Tensor, " channel"]
    cov: Float[Tensor, "group dim dim"] | None = None

    def double(self) -> Moments:
        """The same in float64, without gradients."""
        cov = None if self.cov is None else self.cov.detach().double()
        return Moments(self.count, self.mean.detach().double(), self.var.detach().double(), cov)


@checked
def channel_moments(x: Float[Tensor, "batch channel *spatial"]) -> Moments:
    r"""Moments over every axis but the channel axis 1.

    :math:`\mu_c = \frac{1}{n}\sum x_{\cdot c \cdot}`,
    :math:`\sigma^2_c = \frac{1}{n}\sum (x_{\cdot c \cdot} - \mu_c)^2`, with ``n`` the batch size
    times the number of positions, in float32 at least. A mean far from 0 costs no digits: on a CPU there
    is a second pass around it then, and on a GPU one kernel sums around running means
    (``torch.var_mean``, which takes ten times as long on a CPU). Several times faster there than the
    statistics of ``F.batch_norm`` (``benchmarks/bank.py``).

    Args:
        x: activations, shape ``(batch, channel, *spatial)``.

    Returns:
        The moments, each of shape ``(channel,)``, on a CPU in float64.
    """
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    count = x.numel() // x.shape[1]
    if x.device.type != "cpu":
        var, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
        return Moments(count, mean, var)
    rows = x.flatten(2) if x.ndim > 2 else x[..., None]
    total = _over_batch(rows.sum(2))
    square = _over_batch(torch.linalg.vector_norm(rows, dim=2), power=2)
    around = square - total * (total / count)
    if count == 0 or bool((square <= _NEAR * around).all()):
        return Moments(count, total / count, around / count)
    mean = (total / count).to(rows.dtype)
    centred = rows - mean[:, None]
    rest = _over_batch(centred.sum(2)) / count  # what rounding the mean has left
    square = torch.linalg.vector_norm(centred, dim=2)
    var = _over_batch(square, power=2) / count - rest.square()
    return Moments(count, mean.to(rest) + rest, var.clamp(min=0))


_NEAR = 3.0  # mean squares of up to two variances beside it: half a digit at most


def _over_batch(rows: Float[Tensor, "batch channel"], power: int = 1) -> Float[Tensor, " channel"]:
    wide = rows.double()
    return (wide if power == 1 else wide.square()).sum(0)


@checked
def merge_moments(a: Moments, b: Moments) -> Moments:
    r"""Moments of two disjoint sets together.

    With :math:`n = n_a + n_b` and :math:`\delta = \mu_b - \mu_a`,

    .. math::
        \mu = \mu_a + \delta\, n_b / n, \qquad
        n \sigma^2 = n_a \sigma_a^2 + n_b \sigma_b^2 + \delta^2 n_a n_b / n

    and the same for covariances, with :math:`\delta\delta^\top`.

    Args:
        a: moments of the first set.
        b: moments of the second set, over the same channels.

    Returns:
        Moments of the union; exact, whatever the sizes of the parts. Covariances where both have
        them.

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979), eq. 2.1.
    """
    count = a.count + b.count
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    var = (a.count * a.var + b.count * b.var) / count
    between = a.count * b.count / count**2
    cov = None
    if a.cov is not None and b.cov is not None:
        delta_group = delta.view(a.cov.shape[:2])
        outer = delta_group[:, :, None] * delta_group[:, None, :]
        cov = (a.count * a.cov + b.count * b.cov) / count + between * outer
    return Moments(count, mean, var + between * delta.square(), cov)
