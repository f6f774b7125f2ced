"""What a finite training set leaves open about the population statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor
from torch.distributions.transforms import PowerTransform

from pyronorm.checks import Count, checked
from pyronorm.distributions import InverseChi
from pyronorm.errors import OptionError
from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork, Per
from pyronorm.laws import Law, ShiftGivenScale
from pyronorm.laws.law import normal
from pyronorm.model import NormalizationModel

__all__ = ["PopulationStatistics"]

# A layer whose batch statistics do not scatter; its population is known to 0.001.
_LARGEST = 1e6


class PopulationStatistics(Guide):
    r"""The posterior of the population mean and variance themselves, given the training data.

    Population statistics are estimated from finite data, so they are random too. For ``N``
    independent Gaussian activations of a channel with mean :math:`\bar x` and biased variance
    :math:`S^2`, and the reference prior :math:`p(\mu, \sigma^2) \propto 1/\sigma^2`, the posterior is
    normal-inverse-gamma,

    .. math::
        N S^2/\sigma^2 \sim \chi^2_{N-1}, \qquad \mu \mid \sigma^2 \sim \mathcal N(\bar x, \sigma^2/N).

    The network's reference statistics are :math:`(\bar x, S^2)`, so in the library's coordinates,
    :math:`\text{shift} = (\bar x - \mu)/S` and :math:`\text{scale} = S/\sigma`,

    .. math::
        \text{scale}^2 \sim \chi^2_{N-1}/N, \qquad
        \text{shift} \mid \text{scale} \sim \mathcal N\big(0, 1/(N \text{scale}^2)\big).

    That mirrors the law of batch noise, where :math:`1/\text{scale}^2` is the chi-square: there the
    population is given and the batch is random, here the other way round. Nothing is learned.

    Args:
        model: the model whose latents to sample.
        num_values: ``N`` > 1, a number or one for each channel, shape ``(channel,)``: the *effective*
            number of independent values, see :meth:`from_bank`.

    Raises:
        OptionError: if ``num_values`` is not finite and above 1.
        ShapeError: if it has another shape.

    Source: Gelman et al., "Bayesian Data Analysis" (3rd ed., 2013), section 3.2. The layers' ``eps``
    counts as a part of the variances.
    """

    df: Tensor

    @checked
    def __init__(
        self,
        model: NormalizationModel | LatentNetwork,
        num_values: float | Sequence[float] | Tensor,
    ) -> None:
        super().__init__(model)
        df = self._vector(num_values, "num_values") - 1
        if not bool(((df > 0) & df.isfinite()).all()):
            raise OptionError(
                "guides.PopulationStatistics: num_values must be finite and above 1 (one value has no "
                f"variance), got {num_values}."
            )
        self.register_buffer("df", df)

    @classmethod
    @checked
    def from_bank(
        cls,
        model: NormalizationModel | LatentNetwork,
        bank: StatisticsBank,
        num_data: Count,
        per: Per | str = Per.LAYER,
    ) -> PopulationStatistics:
        r"""Take the effective number of values from the scatter of batch statistics.

        A batch of ``B`` examples tells as much as :math:`n` independent values
        (:meth:`pyronorm.StatisticsBank.effective_batch_size`), so ``num_data`` examples tell as much
        as :math:`N = n \cdot \text{num\_data} / B`. Positions of an image are correlated: ``N`` is
        below their number. Batches drawn *without* replacement that are a sizable part ``f`` of the
        data scatter less, and ``N`` is then too large by the factor :math:`1/(1 - f)`. Layers without
        batch statistics count as known.

        Args:
            model: the model whose latents to sample.
            bank: statistics of at least 2 training batches.
            num_data: examples that the population statistics were estimated from.
            per: what has an effective number of its own.

        Raises:
            ShapeError: if the bank belongs to another network.
            OptionError: if it has a single row, or ``num_data`` is below its batch size.
        """
        where = "guides.PopulationStatistics.from_bank"
        space, per = model.space, Per.of(per)
        bank.check(space, where, rows=2)
        if num_data < bank.batch_size:
            raise OptionError(
                f"{where}: num_data must be at least the bank's batch size {bank.batch_size}, got "
                f"{num_data}."
            )
        size = bank.effective_batch_size(per).estimate * (num_data / bank.batch_size)
        return cls(model, size.clamp(max=_LARGEST)[per.groups(space).to(size.device)])

    @property
    def num_values(self) -> Tensor:
        """The numbers of values ``N``, shape ``(channel,)``."""
        return 1 + self.df

    def law(self) -> Law:
        """Scale, and the shift given it."""
        root = torch.sqrt(1 + self.df)
        # 1/scale = sqrt(N) / chi: the inverse-chi density is exact for large N, in any precision.
        scale = TransformedDistribution(
            InverseChi(self.df, root, validate_args=False),
            [PowerTransform(root.new_full((), -1.0))],
        )

        def shift(scale: Tensor) -> Any:
            return normal(torch.zeros_like(root), 1 / (root * scale))

        return ShiftGivenScale(shift, scale.to_event(1))
