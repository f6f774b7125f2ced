"""Statistics of the other examples of the batch: exclusive batch normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyronorm.checks import NotNegative
from pyronorm.errors import ShapeError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.batch import Batch
from pyronorm.normalizers.kernels import affine_each, full_precision
from pyronorm.stats.moments import layer_moments

__all__ = ["Exclusive"]

_BATCH = Batch()  # holds no state: eps, buffers and mode are the layer's


@dataclass(frozen=True)
class Exclusive(Normalizer):
    r"""Statistics of the other examples of the batch in training, of the population in evaluation.

    In training mode example :math:`i` is normalized with mean and biased variance per channel of all
    values of the batch but its own,

    .. math::
        \hat x_i = \frac{x_i - M_{-i}}{\sqrt{S_{-i}^2 + \epsilon}},

    so the noise of the statistics is independent of the example, as it is in the law of batch noise
    (:class:`pyronorm.guides.BatchNoise`): with independent Gaussian examples the training loss of a
    layer *is* the expected loss under the law of ``n - 1`` values, where that of
    :class:`Batch` differs from the law of ``n`` by :math:`O(1/n)`. Otherwise it is :class:`Batch`:
    population statistics come from :func:`pyronorm.estimate_population_statistics`. A batch has no
    single pair of statistics, so there is no statistics bank.

    Args:
        eps: added to the variance; None takes the converted layer's own.

    Source: Kosson, Fan & Jaggi, "Ghost Noise for Regularizing Deep Neural Networks" (AAAI 2024),
    "exclusive batch normalization".

    Departs from the paper: all positions of an example are left out together, and no running average
    is moved in training.
    """

    eps: NotNegative | None = None
    uses_batch: ClassVar[bool] = True
    keeps_population: ClassVar[bool] = True
    shared_by_batch: ClassVar[bool] = False

    @property
    def least_batch_size(self) -> int:
        """Two others have a variance."""
        return 3

    def buffers(self, num_channels: int) -> dict[str, Tensor]:
        """``running_mean``, ``running_var`` and ``num_batches_tracked``."""
        return _BATCH.buffers(num_channels)

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize with the other examples (training mode), or with the population (evaluation)."""
        if not layer.training:
            return _BATCH.normalize(layer, x, weight, bias)
        one = x.new_ones(1, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        return self._normalize_others(
            layer,
            x,
            one if weight is None else weight.to(one)[None],
            torch.zeros_like(one) if bias is None else bias.to(one)[None],
        )

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Like :meth:`normalize`, with an affine map per example."""
        if not layer.training:
            return _BATCH.normalize_each(layer, x, weight, bias)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self._normalize_others(layer, x, weight.to(dtype), bias.to(dtype))

    def _normalize_others(
        self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        positions = math.prod(x.shape[2:])
        count = (len(x) - 1) * positions
        if count < 2:
            raise ShapeError(
                f"{layer.name}: exclusive batch statistics need at least 2 values per channel in the "
                f"other examples, got {count} (input of shape {tuple(x.shape)}). Use a larger batch, or "
                "evaluation mode."
            )
        if layer.recorder is not None:
            layer.recorder(layer, layer_moments(x))
        with full_precision(x):
            # Sums around the mean of the batch, for precision. It is a constant here: what is computed
            # does not depend on it.
            values = x.to(weight.dtype)
            others = (0, *range(2, x.ndim))
            center = values.detach().mean(others, keepdim=True)
            values = values - center
            own = values.flatten(2).sum(2) if x.ndim > 2 else values
            squares = values.square()
            own_squares = squares.flatten(2).sum(2) if x.ndim > 2 else squares
            mean = (own.sum(0) - own) / count
            var = ((own_squares.sum(0) - own_squares) / count - mean.square()).clamp(min=0)
            weight = weight * torch.rsqrt(var + layer.eps)
            return affine_each(values, weight, bias - weight * mean).to(x.dtype)
