"""A joint Gaussian of shifts and log scales with a low-rank covariance."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, Positive, checked
from pyronorm.devices import check_memory
from pyronorm.errors import OptionError
from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import TOO_MANY, Guide
from pyronorm.guides.mean_field import MeanField
from pyronorm.latents import LatentNetwork
from pyronorm.laws import Joint, Law
from pyronorm.laws.gaussian import LowRankNormal
from pyronorm.laws.law import in_full
from pyronorm.model import NormalizationModel
from pyronorm.stats.batch_noise import check_batch_size

__all__ = ["LowRank"]

_MIN_STD = 1e-6


class LowRank(Guide):
    r"""A joint Gaussian over all shifts and log scales, across channels and layers.

    .. math::
        (\text{shift}, \log\text{scale}) \sim
        \mathcal N\big(m,\; F F^\top + \mathrm{diag}(d^2)\big)

    Parameters: ``loc`` (m) and ``log_std`` (log d) of shape ``(2 * channel,)``, ``factor`` (F) of
    shape ``(2 * channel, rank)``; shifts first. ELBOs estimate the
    KL divergence by sampling; :meth:`kl` has it in closed form against Gaussian priors.

    Args:
        model: the model whose latents to sample.
        rank: columns of ``F``.
        init_std: initial standard deviation of every component, shared between ``F`` and ``d``.
        neutral: hold the locations: every shift has median 0 and every scale median 1, so only the
            noise is learned. In a pretrained network, whose function is good already, free locations
            overfit the data it was trained on.

    Sites: besides ``shift`` and ``scale`` an auxiliary site ``latents``, both in one vector, which
    carries the density.

    Raises:
        OptionError: if ``rank`` or ``init_std`` is not positive.
        SizeError: if there is no memory for so many latents.
    """

    loc: Tensor

    @checked
    def __init__(
        self,
        model: NormalizationModel | LatentNetwork,
        rank: Count = 10,
        init_std: Positive = 0.03,
        *,
        neutral: bool = False,
    ) -> None:
        super().__init__(model)
        size = 2 * self.space.num_channels
        if rank > size:
            raise OptionError(f"guides.LowRank: rank must be between 1 and {size}, got {rank}.")
        like = self.like
        check_memory(f"guides.LowRank of {size:,} latents", size * rank, like, TOO_MANY)
        half = init_std / math.sqrt(2)
        self.rank, self.init_std, self.neutral = rank, init_std, neutral
        self._add_location("loc", like.new_zeros(size), neutral)
        self.log_std = nn.Parameter(like.new_full((size,), math.log(half)))
        self.factor = nn.Parameter(torch.randn(size, rank).to(like) * (half / math.sqrt(rank)))

    @classmethod
    @checked
    def from_batch_size(
        cls,
        model: NormalizationModel | LatentNetwork,
        batch_size: float,
        rank: Count = 10,
        *,
        neutral: bool = False,
    ) -> LowRank:
        r"""Start at the noise of a given batch size, by its moments, as :class:`MeanField` does.

        The means and variances are those of :meth:`MeanField.from_batch_size`. One half of each
        variance is in ``d``, the other in rows of ``F`` with random directions.

        Args:
            model: the model whose latents to sample.
            batch_size: ``n`` > 1.
            rank: columns of ``F``.
            neutral: hold the locations at the neutral values.
        """
        n = check_batch_size(batch_size, "guides.LowRank.from_batch_size")
        guide = cls(model, rank=rank, neutral=neutral)
        start = MeanField.from_batch_size(model, n, neutral=neutral)
        with torch.no_grad():
            guide.loc.copy_(torch.cat([start.shift_loc, start.log_scale_loc]))
            std = torch.cat([start.shift_log_std, start.log_scale_log_std]).exp() / math.sqrt(2)
            guide.log_std.copy_(std.log())
            guide.factor.copy_(nn.functional.normalize(guide.factor, dim=1) * std[:, None])
        return guide

    @classmethod
    @checked
    def from_bank(
        cls,
        model: NormalizationModel | LatentNetwork,
        bank: StatisticsBank,
        rank: Count = 10,
        *,
        neutral: bool = False,
    ) -> LowRank:
        r"""The low-rank Gaussian of a statistics bank.

        ``F`` spans the leading principal components of the rows, ``d`` takes up the rest of each
        component's variance: means and (unbiased) marginal variances are those of the bank, and so
        are the correlations as far as ``rank`` components carry them.

        Args:
            model: the model whose latents to sample.
            bank: statistics of training batches, more than ``rank``.
            rank: columns of ``F``.
            neutral: leave the bank's means out; the covariance stays as it is, around them.

        Raises:
            ShapeError: if the bank belongs to another network.
            StatisticsError: if it belongs to other weights.
            OptionError: if it has no more than ``rank`` rows.
        """
        guide = cls(model, rank=rank, neutral=neutral)
        bank.check(guide.space, "guides.LowRank.from_bank", rows=rank + 1)
        bank.check_weights(model, "guides.LowRank.from_bank")
        rows = torch.cat([bank.shift, bank.scale.log()], dim=-1).double()
        centred = (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
        _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
        factor = vectors[:rank].T * values[:rank]
        rest = centred.square().sum(0) - factor.square().sum(1)
        with torch.no_grad():
            if not neutral:
                guide.loc.copy_(rows.mean(0))
            guide.factor.copy_(factor)
            guide.log_std.copy_(rest.clamp(min=_MIN_STD**2).sqrt().log())
        guide.stamp(model)
        return guide

    def covariance(self) -> Float[Tensor, "size size"]:
        """Covariance of shifts and log scales, shape ``(2 * channel, 2 * channel)``.

        Raises:
            SizeError: if there is no memory for it.
        """
        check_memory(
            "LowRank.covariance",
            len(self.log_std) ** 2,
            self.log_std,
            "The attributes factor and log_std have all that it holds.",
        )
        return self.factor @ self.factor.T + torch.diag((2 * self.log_std).exp())

    def law(self) -> Law:
        """All latents jointly."""
        loc, factor, log_std = in_full(self.loc, self.factor, self.log_std)
        return Joint(LowRankNormal(loc, factor, (2 * log_std).exp()))
