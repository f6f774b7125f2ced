"""Independent Gaussians of shift and log scale, and what another law costs them, in few kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import LogNormal, Normal
from torch import Tensor
from torch.distributions import Independent as TorchIndependent

from pyronorm.distributions import ImproperFlat, ImproperLogUniform, InverseChi
from pyronorm.laws.kinds import Independent
from pyronorm.laws.law import Choose, Law, log_normal, normal

__all__ = ["Diagonal", "divergence_to"]

Divergence = Callable[["Diagonal", Tensor, Tensor], Tensor]
"""A KL divergence from a law, whose deviations are given too."""


@dataclass(frozen=True, repr=False)
class Diagonal(Law):
    r"""Normal shifts and log-normal scales, all independent: as :class:`Independent`, by parameters.

    A step of training draws from it and takes its divergence to a prior without distributions, whose
    making costs more than the arithmetic.

    Args:
        shift_loc: :math:`m`, shape ``(channel,)``.
        shift_log_std: :math:`\log s`.
        log_scale_loc: :math:`u`.
        log_scale_log_std: :math:`\log t`.
    """

    shift_loc: Tensor
    shift_log_std: Tensor
    log_scale_loc: Tensor
    log_scale_log_std: Tensor

    @property
    def shift(self) -> Any:
        """The distribution of the shift."""
        return normal(self.shift_loc, self.shift_log_std.exp())

    @property
    def scale(self) -> Any:
        """The distribution of the scale."""
        return log_normal(self.log_scale_loc, self.log_scale_log_std.exp())

    def run(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Shift, then scale."""
        return choose("shift", self.shift), choose("scale", self.scale)

    def marginals(self) -> tuple[Any, Any]:
        """The two distributions."""
        return self.shift, self.scale

    def entropy(self) -> Tensor:
        """Sum of both entropies."""
        total: Tensor = self.shift.entropy() + self.scale.entropy()
        return total

    def draw_against(self, divergence: Divergence) -> tuple[Tensor, Tensor, Tensor]:
        """A draw, the same that its distributions would give, and a divergence.

        Args:
            divergence: of :func:`divergence_to`.

        Returns:
            Shift, scale, and a scalar.
        """
        s, t = self.shift_log_std.exp(), self.log_scale_log_std.exp()
        shift = torch.addcmul(self.shift_loc, s, torch.randn_like(s))
        scale = torch.addcmul(self.log_scale_loc, t, torch.randn_like(t)).exp()
        return shift, scale, divergence(self, s, t)


def divergence_to(p: Law) -> Divergence | None:
    r"""The KL divergence from :class:`Diagonal` laws to another, with its constants computed once.

    The sum over channels of :math:`-\mathrm H(q) - \mathbb E_q \log p`, in nats.

    Args:
        p: the other law: normal or flat shifts, and log-normal, inverse-chi or log-uniform scales.

    Returns:
        None if it is not of these.
    """
    if not isinstance(p, Independent) or p.shift.batch_shape or p.scale.batch_shape:
        return None
    shift, scale = (
        f.base_dist if isinstance(f, TorchIndependent) else f for f in (p.shift, p.scale)
    )
    of_shift, of_scale = (_PARTS.get((i, type(f))) for i, f in enumerate((shift, scale)))
    if of_shift is None or of_scale is None:
        return None
    first, second = of_shift(shift), of_scale(scale)

    def divergence(q: Diagonal, s: Tensor, t: Tensor) -> Tensor:
        entropy = q.shift_log_std.sum() + q.log_scale_log_std.sum()
        return first(q.shift_loc, s) + second(q.log_scale_loc, t) - entropy

    return divergence


# Each gives -E log p - (1 + log 2 pi) / 2 for every channel, as a sum: without the logarithm of the
# deviation, and for a scale without the mean of its logarithm, which the entropy has as well.
Part = Callable[[Tensor, Tensor], Tensor]


def _of_normal(p: Normal | LogNormal) -> Part:
    precision = p.scale.square().reciprocal() / 2
    constant = (p.scale.log() - 0.5).sum()

    def part(loc: Tensor, std: Tensor) -> Tensor:
        apart = loc - p.loc
        return torch.addcmul(std.square(), apart, apart).dot(precision) + constant

    return part


def _of_inverse_chi(p: InverseChi) -> Part:
    df, scale = p.df.double(), p.scale.double()
    rate = scale.square() / 2
    each = torch.lgamma(df / 2) - (1 - df / 2) * math.log(2) - df * scale.log()
    constant = (each - _CONSTANT).sum()

    def part(loc: Tensor, std: Tensor) -> Tensor:
        # In float64: for many data this is a small difference of large numbers.
        loc, std = loc.double(), std.double()
        inverse = torch.exp(2 * (std.square() - loc))  # E 1 / scale^2
        return (inverse.dot(rate) + loc.dot(df) + constant).to(p.df.dtype)

    return part


def _of_flat(p: ImproperFlat | ImproperLogUniform) -> Part:
    constant = p.like.new_full((), -_CONSTANT * p.like.numel())
    return lambda loc, std: constant


_CONSTANT = (1 + math.log(2 * math.pi)) / 2
_PARTS: dict[tuple[int, type], Callable[[Any], Part]] = {
    (0, Normal): _of_normal,
    (0, ImproperFlat): _of_flat,
    (1, LogNormal): _of_normal,
    (1, InverseChi): _of_inverse_chi,
    (1, ImproperLogUniform): _of_flat,
}
