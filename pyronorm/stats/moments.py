"""Biased moments per channel, and how moments of parts add up to moments of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.display import displayed

__all__ = ["Moments", "channel_moments", "layer_moments", "merge_moments", "merged"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
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
    times the number of positions, in float32 at least. On a GPU one kernel sums around running means
    (``torch.var_mean``, which takes thirty times as long on a CPU). On a CPU sums and norms of parts of
    each example are added up in float64; where a mean is more than four standard deviations from 0, a
    second pass around it keeps the digits of the variance. Several times faster than the statistics of
    ``F.batch_norm`` (``benchmarks/bank.py``).

    Args:
        x: activations, shape ``(batch, channel, *spatial)``.

    Returns:
        The moments, each of shape ``(channel,)``, on a CPU in float64.
    """
    return layer_moments(x)


def layer_moments(x: Tensor) -> Moments:
    """The same of activations that a layer has checked already."""
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    count = x.numel() // x.shape[1]
    if x.device.type != "cpu":
        var, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
        return Moments(count, mean, var)
    mean, square = _means(x, count)
    var = torch.addcmul(square, mean, mean, value=-1)
    if count == 0 or bool((square <= _NEAR * var).all()):
        return Moments(count, mean, var)
    rounded = mean.to(x.dtype)
    rest, square = _means(x - rounded.view(-1, *[1] * (x.ndim - 2)), count)
    var = square - rest.square()  # rest: what rounding the mean has left
    return Moments(count, rounded + rest, var.clamp(min=0))


_NEAR = 16.0  # mean squares of that many variances cost the variance one digit of float32's seven
_LONG = 1024  # positions to sum up in float32


def _means(
    x: Float[Tensor, "batch channel *spatial"], count: int
) -> tuple[Float[Tensor, " channel"], Float[Tensor, " channel"]]:
    """Means of the values and of their squares, in float64."""
    if x.ndim == 2:
        sums, norms = x, x
    else:
        spatial = [*range(2, x.ndim)] if math.prod(x.shape[2:]) <= _LONG else [-1]
        sums, norms = x.sum(spatial), torch.linalg.vector_norm(x, dim=spatial)
    rest = [axis for axis in range(sums.ndim) if axis != 1]
    total = sums.sum(rest, dtype=torch.float64)
    norm = torch.linalg.vector_norm(norms, dim=rest, dtype=torch.float64)
    return total.div_(count), norm.square_().div_(count)


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
    share = b.count / count
    mean, var = merged((a.mean, a.var), (b.mean, b.var), share)
    cov = None
    if a.cov is not None and b.cov is not None:
        delta = (b.mean - a.mean).view(a.cov.shape[:2])
        outer = delta[:, :, None] * delta[:, None, :]
        cov = a.cov + (b.cov - a.cov) * share + (share * (1 - share)) * outer
    return Moments(count, mean, var, cov)


def merged(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], share: float | Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`merge_moments`, for channels with counts of their own.

    Args:
        a: mean and variance of the first set, each of shape ``(channel,)``.
        b: those of the second set.
        share: the part of all elements that is in the second set, of each channel or of all.
    """
    delta = b[0] - a[0]
    mean = a[0] + delta * share
    return mean, a[1] + (b[1] - a[1]) * share + delta.square() * (share * (1 - share))
