"""Batch noise whose batch size is learned."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork, Per
from pyronorm.laws import Law
from pyronorm.laws.law import in_full
from pyronorm.model import NormalizationModel
from pyronorm.priors import batch_noise_law
from pyronorm.stats.batch_noise import check_batch_size

__all__ = ["EffectiveBatchSize"]

# A layer without batch noise has no finite size; this one has a standard deviation of 0.001.
_LARGEST = 1e6


class EffectiveBatchSize(Guide):
    r"""The law of batch noise with a learned batch size, per network, per layer or per channel.

    .. math::
        \text{shift}_c \sim \mathcal N(0, 1/n_g), \qquad
        1/\text{scale}_c^2 \sim \chi^2_{n_g - 1} / n_g, \qquad c \in \text{group } g

    In batch normalization the batch size is the one parameter of the posterior, and it is set by the
    memory of the machine; here the ELBO sets it. Gradients are pathwise, through the normal and
    through the chi-square. The KL divergence has a closed form for every prior of the library and is
    0 against :class:`pyronorm.priors.BatchNoise` of the same size.

    **Start with** ``batch_size`` **too large rather than too small.** The variance of the scale is
    infinite for ``n`` up to 3: gradients there are so heavy-tailed that Adam's running averages of their
    squares take long to forget a single one, and training stalls. With a bank, :meth:`from_bank` is
    the better start.

    Parameter: ``log_df``, the logarithms of :math:`n_g - 1`, shape ``(group,)``.

    Args:
        model: the model whose latents to sample.
        batch_size: initial ``n`` > 1, need not be whole.
        per: what has a batch size of its own: "network", "layer" or "channel".

    Raises:
        OptionError: if ``batch_size`` is not a finite number above 1.

    Source: the law is that of Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning"
    (ACCV 2018), where ``n`` is given.
    """

    has_analytic_kl: ClassVar[bool] = True

    groups: Tensor

    @checked
    def __init__(
        self,
        model: NormalizationModel | LatentNetwork,
        batch_size: float = 32.0,
        per: Per | str = Per.LAYER,
    ) -> None:
        super().__init__(model)
        df = check_batch_size(batch_size, "guides.EffectiveBatchSize") - 1
        self.per = per = Per.of(per)
        like = self.like
        self.register_buffer("groups", per.groups(self.space).to(like.device), persistent=False)
        start = like.new_full((len(per.labels(self.space)),), df)
        self.log_df = nn.Parameter(start.log())

    @classmethod
    @checked
    def from_bank(
        cls,
        model: NormalizationModel | LatentNetwork,
        bank: StatisticsBank,
        per: Per | str = Per.LAYER,
    ) -> EffectiveBatchSize:
        """Start at the effective batch sizes of a bank, estimated by maximum likelihood.

        :meth:`pyronorm.StatisticsBank.effective_batch_size` has the estimator and gives intervals.
        Layers without batch statistics have no noise and start at a million.

        Args:
            model: the model whose latents to sample.
            bank: statistics of at least 2 training batches.
            per: what has a batch size of its own.

        Raises:
            ShapeError: if the bank belongs to another network.
            OptionError: if it has a single row.
        """
        guide = cls(model, per=per)
        bank.check(guide.space, "guides.EffectiveBatchSize.from_bank", rows=2)
        size = bank.effective_batch_size(per).estimate.clamp(max=_LARGEST)
        with torch.no_grad():
            guide.log_df.copy_((size - 1).log())
        return guide

    def settings(self) -> dict[str, Any]:
        """What has a batch size of its own; the sizes are in the state."""
        return {"per": self.per.value}

    @property
    def batch_size(self) -> Float[Tensor, " group"]:
        """The batch sizes ``n`` now, in the order of ``per.labels(space)``."""
        return 1 + self.log_df.exp()

    def law(self) -> Law:
        """Normal shift and inverse-chi scale."""
        (log_df,) = in_full(self.log_df)
        return batch_noise_law(log_df.exp()[self.groups])
