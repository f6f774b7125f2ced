"""The rows of a statistics bank: Monte-Carlo batch normalization."""

from __future__ import annotations

from typing import ClassVar

import pyro
from pyro.distributions import Categorical
from torch import Tensor

from pyronorm.distributions import DrawsOnly
from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import Guide
from pyronorm.latents import LatentNetwork
from pyronorm.model import NormalizationModel

__all__ = ["BatchNoise"]


class BatchNoise(Guide):
    r"""Monte-Carlo batch normalization: a random row of the bank, all layers together.

    The implicit posterior that training with batch normalization leaves behind: each draw replaces
    the population statistics of *all* layers by those of one training batch. It has draws and no
    density, so it predicts and exports to ArviZ, but an ELBO over it raises
    :class:`~pyronorm.errors.NoDensityError`.

    Args:
        model: the model whose latents to sample.
        bank: statistics of training batches, as many as there should be different draws.

    Sites: besides ``shift`` and ``scale`` an auxiliary site ``row``, the row drawn.

    Raises:
        ShapeError: if the bank belongs to another network.

    Source: Teye, Azizpour & Smith, "Bayesian Uncertainty Estimation for Batch Normalized Deep
    Networks" (ICML 2018): replace the statistics, don't average them; biased variance.
    """

    has_density: ClassVar[bool] = False

    shift: Tensor
    scale: Tensor

    def __init__(self, model: NormalizationModel | LatentNetwork, bank: StatisticsBank) -> None:
        super().__init__(model)
        bank.check(self.space, "guides.BatchNoise")
        like = self._like()
        self.register_buffer("shift", bank.shift.to(like))
        self.register_buffer("scale", bank.scale.to(like))

    def sample_sites(self) -> tuple[Tensor, Tensor]:
        """Draw a row, then the two sites from it."""
        space = self.space
        row = pyro.sample(
            f"{space.prefix}row",
            Categorical(logits=self.shift.new_zeros(len(self.shift)), validate_args=False),
            infer={"is_auxiliary": True},
        )
        shift = DrawsOnly(self.shift[row], 1, "guides.BatchNoise")
        scale = DrawsOnly(self.scale[row], 1, "guides.BatchNoise")
        return pyro.sample(space.shift_site, shift), pyro.sample(space.scale_site, scale)
