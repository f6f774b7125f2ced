"""Batch noise of unknown batch size as a prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from pyro.distributions import Gamma
from torch import Tensor

from pyronorm.checks import Positive, checked
from pyronorm.latents import LatentSpace, Per
from pyronorm.latents.values import check_values
from pyronorm.laws import Hierarchical, Law
from pyronorm.priors.base import Prior
from pyronorm.priors.batch_noise import batch_noise_law
from pyronorm.stats.batch_noise import check_batch_size

__all__ = ["HierarchicalBatchNoise"]

# Quadrature over log(n - 1): so far to both sides of the prior mean, in so many points. The integrand
# is about 1/sqrt(channels) wide, so that is exact to rounding for up to ten thousand per group.
_REACH = 12.0
_POINTS = 2048


@dataclass(frozen=True)
class HierarchicalBatchNoise(Prior):
    r"""The noise of batch normalization with an unknown batch size per network, layer or channel.

    .. math::
        n_g - 1 \sim \mathrm{Gamma}(a, b), \quad b = \frac{a}{\mathbb E n - 1}, \qquad
        \text{shift}_c \sim \mathcal N(0, 1/n_g), \quad
        1/\text{scale}_c^2 \sim \chi^2_{n_g - 1}/n_g, \qquad c \in \text{group } g

    How far latents may leave their neutral values is learned from the latents of a group together:
    with a few channels the hyperprior decides, with hundreds the channels do. As ``a`` grows the
    prior becomes :class:`BatchNoise`.

    Site: before ``shift`` and ``scale`` a site ``df`` (with the network's prefix in front), the
    :math:`n_g - 1`, shape ``(group,)``. Pyro's autoguides and NUTS sample it like any other. The guides
    of this library have a log-normal factor for it (:class:`pyronorm.guides.HyperGuide`), whose KL
    divergence to the Gamma has a closed form. :func:`pyronorm.to_arviz` exports ``batch_size``
    (:math:`n_g`).

    Args:
        batch_size: prior mean of ``n`` > 1.
        concentration: ``a`` > 0; :math:`n - 1` has the relative standard deviation
            :math:`1/\sqrt a`. Below 1 its density is largest at ``n`` = 1, where scales have no mean.
        per: what has a batch size of its own: "network", "layer" or "channel".

    Raises:
        OptionError: if ``batch_size`` is not a finite number above 1, or ``concentration`` not
            positive and finite.

    Source: the law given ``n`` is that of Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian
    Learning" (ACCV 2018); the hyperprior is ours.
    """

    batch_size: float = 64.0
    concentration: Positive = 2.0
    per: Per | str = Per.LAYER

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "per", Per.of(self.per))
        check_batch_size(self.batch_size, "priors.HierarchicalBatchNoise")

    def law(self, space: LatentSpace, like: Tensor) -> Law:
        """Gamma distributions of ``n - 1``, one for each group; then the law of batch noise."""
        ones = like.new_ones(len(Per.of(self.per).labels(space)))
        fn = Gamma(ones * self.concentration, ones * self._rate, validate_args=False)

        def given(hyper: Mapping[str, Tensor]) -> Law:
            df = hyper[_site(space)]
            return batch_noise_law(df[..., _groups(Per.of(self.per), space, df.device)])

        return Hierarchical({_site(space): fn.to_event(1)}, given)

    @checked
    def marginal_log_prob(
        self,
        space: LatentSpace,
        shift: Float[Tensor, "*sample channel"],
        scale: Float[Tensor, "*sample channel"],
    ) -> Float[Tensor, "*sample"]:
        r"""Log density of the latents, :math:`n` integrated out by quadrature in each group.

        Args:
            space: the layers and channels.
            shift: packed shifts.
            scale: packed scales.
        """
        space.check(shift, "HierarchicalBatchNoise.marginal_log_prob")
        space.check(scale, "HierarchicalBatchNoise.marginal_log_prob")
        check_values("HierarchicalBatchNoise.marginal_log_prob", shift, scale)
        x, log_scale = shift.double(), scale.double().log()
        log_df = torch.linspace(-_REACH, _REACH, _POINTS, device=x.device, dtype=x.dtype)
        step = (log_df[1] - log_df[0]).log()
        log_df = log_df + math.log(self.batch_size - 1)
        df = log_df.exp()
        shape, rate = log_df.new_tensor(self.concentration), log_df.new_tensor(self._rate)
        prior = Gamma(shape, rate, validate_args=False).log_prob(df) + log_df
        # Terms of the log likelihood, each channel's and each with its sum over channels.
        half = df / 2
        log_n = torch.log1p(df)
        each = (
            0.5 * (log_n - math.log(2 * math.pi))
            + (1 - half) * math.log(2)
            - torch.lgamma(half)
            + half * log_n
        )
        squares = (x.square() + torch.exp(-2 * log_scale)) / 2
        groups = Per.of(self.per).groups(space).to(x.device)
        total = x.new_zeros(x.shape[:-1])
        for g in range(int(groups.max()) + 1):
            own = groups == g
            square = squares[..., own].sum(-1, keepdim=True)
            logs = log_scale[..., own].sum(-1, keepdim=True)
            log_p = prior + int(own.sum()) * each - (1 + df) * square - (1 + df) * logs
            total = total + torch.logsumexp(log_p, -1) + step
        return total.to(shift.dtype)

    def report(
        self, space: LatentSpace, hyper: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
        """The batch sizes ``n`` as ``batch_size``."""
        if _site(space) not in hyper:
            return {}
        return {"batch_size": (1 + hyper[_site(space)], Per.of(self.per).labels(space))}

    @property
    def _rate(self) -> float:
        return self.concentration / (self.batch_size - 1)


@lru_cache(maxsize=64)
def _groups(per: Per, space: LatentSpace, device: torch.device) -> Tensor:
    return per.groups(space).to(device)


def _site(space: LatentSpace) -> str:
    return f"{space.prefix}df"
