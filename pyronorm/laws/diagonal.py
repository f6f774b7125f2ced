"""Independent Gaussians of shift and log scale, and what another law costs them, in few kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import LogNormal, Normal
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Independent as TorchIndependent

from pyronorm.distributions import ImproperFlat, ImproperLogUniform, InverseChi
from pyronorm.laws.kinds import Independent
from pyronorm.laws.law import Choose, Law, log_normal, normal

__all__ = ["Diagonal", "divergence_to"]

Terms = tuple[Tensor, Tensor, Tensor]
"""A sum over channels, and its derivatives by location and standard deviation of each."""

Part = Callable[[Tensor, Tensor], Terms]
"""What a law of the shift or the scale adds to a divergence, of locations and standard deviations."""

Divergence = tuple[Part, Part]
"""A KL divergence but for logarithms of deviations: what shifts add, and what scales add."""


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
        drawn: tuple[Tensor, Tensor, Tensor] = _DrawAgainst.apply(  # type: ignore[no-untyped-call]
            divergence,
            self.shift_loc,
            self.shift_log_std,
            self.log_scale_loc,
            self.log_scale_log_std,
        )
        return drawn


class _DrawAgainst(torch.autograd.Function):
    """A draw and a divergence as one operation, whose gradient is half known with the value."""

    @staticmethod
    def forward(
        ctx: Any, divergence: Divergence, m: Tensor, log_s: Tensor, u: Tensor, log_t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, t = log_s.exp(), log_t.exp()
        e, f = torch.randn_like(s), torch.randn_like(t)
        shift, scale = torch.addcmul(m, s, e), torch.addcmul(u, t, f).exp()
        of_shift, of_scale = divergence
        first, by_m, by_s = of_shift(m, s)
        second, by_u, by_t = of_scale(u, t)
        ctx.save_for_backward(s, e, by_m, by_s, t, f, by_u, by_t, scale)
        return shift, scale, first + second - (log_s.sum() + log_t.sum())

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_shift: Tensor, by_scale: Tensor, by_total: Tensor
    ) -> tuple[Tensor | None, ...]:
        s, e, by_m, by_s, t, f, by_u, by_t, scale = ctx.saved_tensors
        return (
            None,
            *_back(by_shift, by_total, s, e, by_m, by_s),
            *_back(by_scale * scale, by_total, t, f, by_u, by_t),
        )


def _back(
    gradient: Tensor, by_total: Tensor, std: Tensor, e: Tensor, by_loc: Tensor, by_std: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient by ``loc`` and ``log std`` where ``loc + std e`` and the divergence have one."""
    loc = torch.addcmul(gradient, by_loc, by_total)
    return loc, torch.addcmul(gradient * e, by_std, by_total).mul_(std).sub_(by_total)


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
    return of_shift(shift), of_scale(scale)


# Each gives -E log p - (1 + log 2 pi) / 2 for every channel, as a sum: without the logarithm of the
# deviation, and for a scale without the mean of its logarithm, which the entropy has as well.


def _of_normal(p: Normal | LogNormal) -> Part:
    precision = p.scale.square().reciprocal()
    constant = (p.scale.log() - 0.5).sum()

    def part(loc: Tensor, std: Tensor) -> Terms:
        apart = loc - p.loc
        by_loc, by_std = precision * apart, precision * std
        return (by_loc.dot(apart) + by_std.dot(std)) / 2 + constant, by_loc, by_std

    return part


def _of_inverse_chi(p: InverseChi) -> Part:
    # With E 1 / scale^2 = e^(2a), a = std^2 - loc, and rate = p.scale^2 / 2 the terms are
    # rate e^(2a) + df loc, for many data a small difference of large numbers. It is taken apart:
    # rate (e^(2a) - 1 - 2a) + df std^2 - (df - 2 rate) a + rate.
    df, scale = p.df.double(), p.scale.double()
    twice = scale.square()
    each = torch.lgamma(df / 2) - (1 - df / 2) * math.log(2) - df * scale.log()
    constant = (each + twice / 2 - _CONSTANT).sum().to(p.df.dtype)
    rest, df, twice = (v.to(p.df.dtype) for v in (df - twice, df, twice))

    def part(loc: Tensor, std: Tensor) -> Terms:
        variance = std * std
        a = variance - loc
        b = torch.expm1(a + a)
        mean = twice * b
        total = twice.dot(b - (a + a)) / 2 + df.dot(variance) + (constant - rest.dot(a))
        return total, rest - mean, (mean + twice) * (std + std)

    return part


def _of_flat(p: ImproperFlat | ImproperLogUniform) -> Part:
    constant = p.like.new_full((), -_CONSTANT * p.like.numel())
    zeros = torch.zeros_like(p.like)
    return lambda loc, std: (constant, zeros, zeros)


_CONSTANT = (1 + math.log(2 * math.pi)) / 2
_PARTS: dict[tuple[int, type], Callable[[Any], Part]] = {
    (0, Normal): _of_normal,
    (0, ImproperFlat): _of_flat,
    (1, LogNormal): _of_normal,
    (1, InverseChi): _of_inverse_chi,
    (1, ImproperLogUniform): _of_flat,
}
