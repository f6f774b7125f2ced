"""Kullback-Leibler divergences between laws."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Independent as TorchIndependent
from torch.distributions import LogNormal, Normal, kl_divergence

from pyronorm.checks import Count, checked
from pyronorm.errors import NoDensityError, OptionError
from pyronorm.laws.diagonal import Diagonal
from pyronorm.laws.kinds import Independent, Joint
from pyronorm.laws.law import Law

__all__ = ["closed_form", "kl"]


@checked
def kl(q: Law, p: Law, num_samples: Count | None = None) -> Tensor:
    r"""The Kullback-Leibler divergence :math:`\mathrm{KL}(q \| p)` in nats, of all latents together.

    Closed forms are those registered with :func:`torch.distributions.kl_divergence`, for independent
    laws, for joint Gaussians, and for a joint Gaussian against independent normal shifts and
    log-normal scales. Hyperparameters are counted in: both laws need the same ones.

    Args:
        q: the law whose draws are averaged over.
        p: the other. If it is improper, the divergence is up to a constant.
        num_samples: draws of ``q`` for an unbiased estimate where there is no closed form; None
            refuses to estimate. Where there is a closed form it is not used.

    Returns:
        A scalar, differentiable in the parameters of both.

    Raises:
        OptionError: if there is no closed form and ``num_samples`` is None.
        NoDensityError: if one of them has no density.
    """
    if not (q.has_density and p.has_density):
        raise NoDensityError("kl: both laws need a density; a bank's rows and a point have none.")
    exact = _closed(q, p)
    if exact is not None:
        return exact
    if num_samples is None:
        raise OptionError(
            f"kl: there is no closed form from {type(q).__name__} to {type(p).__name__} with these "
            "distributions. Say by how many draws to estimate it, num_samples=1000."
        )
    draws = q.draw(num_samples)
    assert draws.log_density is not None
    return (draws.log_density - p.log_prob(draws.shift, draws.scale, draws.hyper)).mean()


def closed_form(q: Any, p: Any) -> Tensor | None:
    """The divergence of two distributions as torch knows it, None where it does not.

    Args:
        q: the distribution whose draws are averaged over.
        p: the other.
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _closed(q: Law, p: Law) -> Tensor | None:
    if isinstance(q, (Independent, Diagonal)) and isinstance(p, (Independent, Diagonal)):
        shift, scale = closed_form(q.shift, p.shift), closed_form(q.scale, p.scale)
        return None if shift is None or scale is None else shift + scale
    if isinstance(q, Joint):
        latents = p.latents if isinstance(p, Joint) else _gaussian(p)
        if latents is not None:
            # The exponential is the same in both, and KL does not change under it.
            return closed_form(q.latents, latents)
    return None


def _gaussian(p: Law) -> MultivariateNormal | None:
    """A law of independent normal shifts and log-normal scales as one Gaussian, else None."""
    if not isinstance(p, (Independent, Diagonal)):
        return None
    shift, scale = (
        fn.base_dist if isinstance(fn, TorchIndependent) else fn for fn in (p.shift, p.scale)
    )
    if not (isinstance(shift, Normal) and isinstance(scale, LogNormal)):
        return None
    loc = torch.cat([shift.loc, scale.loc], -1)
    std = torch.cat([shift.scale, scale.scale], -1)
    return MultivariateNormal(loc, scale_tril=std.diag_embed(), validate_args=False)
