"""Batch statistics of parts of the batch: ghost batch normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyronorm.checks import Count, NotNegative
from pyronorm.errors import ShapeError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.batch import Batch

__all__ = ["Ghost"]

_BATCH = Batch()  # holds no state: eps, buffers and mode are the layer's


@dataclass(frozen=True)
class Ghost(Normalizer):
    r"""Statistics of small virtual batches in training mode, of the population in evaluation mode.

    In training mode the batch is cut, in order, into virtual batches of ``virtual_batch_size``
    examples, and each is normalized with its own mean and biased variance: the noise of small
    batches while training on large ones. A rest is a virtual batch of its own, as is a batch smaller
    than ``virtual_batch_size``; a rest with a single value per channel joins the one before it.
    Otherwise it is :class:`Batch`: population statistics for evaluation come from
    :func:`pyronorm.estimate_population_statistics`, which runs over the data with virtual batches and
    pools them exactly.

    A statistics bank (:func:`pyronorm.collect_bank`) has one virtual batch in each row, so it is
    collected with batches of ``virtual_batch_size``.

    Args:
        virtual_batch_size: examples per virtual batch, at least 1 (several positions each), as a
            rule 16 to 128.
        eps: added to the variance; None takes the converted layer's own.

    Raises:
        OptionError: if ``virtual_batch_size`` is below 1.

    Source: Hoffer, Hubara & Soudry, "Train longer, generalize better" (NeurIPS 2017), algorithm 1.

    Departs from the paper: no running average is moved in training, and population statistics are
    pooled over all virtual batches of the data instead of averaged with decaying weights.
    """

    virtual_batch_size: Count
    eps: NotNegative | None = None
    uses_batch: ClassVar[bool] = True
    keeps_population: ClassVar[bool] = True

    @property
    def fixed_batch_size(self) -> int:
        """The virtual batch size."""
        return self.virtual_batch_size

    def buffers(self, num_channels: Count) -> dict[str, Tensor]:
        """``running_mean``, ``running_var`` and ``num_batches_tracked``."""
        return _BATCH.buffers(num_channels)

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Normalize each virtual batch (training mode), or with the population (evaluation)."""
        if not layer.training:
            return _BATCH.normalize(layer, x, weight, bias)
        parts = list(x.split(self.virtual_batch_size))
        self._check(layer, parts[0])
        if _values(parts[-1]) < 2:
            parts[-2:] = [torch.cat(parts[-2:])]
        # One kernel call per part and a join: faster than one call on rearranged data, whose
        # rearranging copies the activations twice (measured), and it keeps the memory format.
        outputs = [_BATCH.normalize(layer, part, weight, bias) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Like :meth:`normalize`, with an affine map per example."""
        if not layer.training:
            return _BATCH.normalize_each(layer, x, weight, bias)
        return super().normalize_each(layer, x, weight, bias)

    def _check(self, layer: LatentNorm, x: Tensor) -> None:
        if _values(x) < 2:
            raise ShapeError(
                f"{layer.name}: a virtual batch has {len(x)} example(s), and batch statistics need at "
                f"least 2 values per channel (input of shape {tuple(x.shape)}, "
                f"virtual_batch_size={self.virtual_batch_size}). Use larger batches, or evaluation "
                "mode."
            )


def _values(x: Tensor) -> int:
    """Values per channel."""
    return len(x) * math.prod(x.shape[2:])
