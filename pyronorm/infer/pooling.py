"""Moments of layers over many batches, merged for all layers at once."""

from __future__ import annotations

import torch
from torch import Tensor

from pyronorm.normalizers import LatentNorm
from pyronorm.stats import Moments, merge_moments

__all__ = ["Pool"]


class Pool:
    """Pools the moments that layers report, with a few kernels per batch whatever their number.

    Within a batch reports are only noted; what layers report in one order is packed and merged as one.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[LatentNorm, Moments]] = []
        # by the layers, in the order of their reports
        self._packed: dict[tuple[LatentNorm, ...], tuple[list[int], Tensor, Tensor]] = {}
        self._apart: dict[LatentNorm, Moments] = {}  # with covariances

    def add(self, layer: LatentNorm, moments: Moments) -> None:
        """Note what a layer reports."""
        if moments.cov is None:
            self._noted.append((layer, moments))
        else:
            _merge(self._apart, layer, moments.double())

    def end_batch(self) -> None:
        """Merge what the batch that is over has brought."""
        if not self._noted:
            return
        layers = tuple(layer for layer, _ in self._noted)
        found = [moments for _, moments in self._noted]
        self._noted = []
        counts = [moments.count for moments in found]
        mean = torch.cat([moments.mean.detach() for moments in found]).double()
        var = torch.cat([moments.var.detach() for moments in found]).double()
        if layers in self._packed:
            before, *earlier = self._packed[layers]
            sizes = [len(moments.mean) for moments in found]
            mean, var = _merged(before, (earlier[0], earlier[1]), counts, (mean, var), sizes)
            counts = [a + b for a, b in zip(before, counts, strict=True)]
        self._packed[layers] = counts, mean, var

    def totals(self) -> dict[LatentNorm, Moments]:
        """The moments of each layer over all batches, in float64."""
        self.end_batch()
        totals = dict(self._apart)
        for layers, (counts, mean, var) in self._packed.items():
            sizes = [layer.num_channels for layer in layers]
            for layer, *parts in zip(
                layers, counts, mean.split(sizes), var.split(sizes), strict=True
            ):
                _merge(totals, layer, Moments(*parts))
        return totals


def _merge(totals: dict[LatentNorm, Moments], layer: LatentNorm, moments: Moments) -> None:
    totals[layer] = merge_moments(totals[layer], moments) if layer in totals else moments


def _merged(
    counts_a: list[int],
    a: tuple[Tensor, Tensor],
    counts_b: list[int],
    b: tuple[Tensor, Tensor],
    sizes: list[int],
) -> tuple[Tensor, Tensor]:
    """As :func:`pyronorm.stats.merge_moments`, for several layers with counts of their own."""
    shares = [n / (m + n) for m, n in zip(counts_a, counts_b, strict=True)]
    share: float | Tensor = shares[0]
    if len(set(shares)) > 1:
        parts = zip(sizes, shares, strict=True)
        share = torch.cat([b[0].new_full((size,), value) for size, value in parts])
    delta = b[0] - a[0]
    mean = a[0] + delta * share
    return mean, a[1] + (b[1] - a[1]) * share + delta.square() * (share * (1 - share))
