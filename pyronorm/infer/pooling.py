"""Moments of layers over many batches, merged for all layers at once."""

from __future__ import annotations

import torch
from torch import Tensor

from pyronorm.normalizers import LatentNorm
from pyronorm.stats import Moments, merge_moments
from pyronorm.stats.moments import merged

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
            shares = [n / (m + n) for m, n in zip(before, counts, strict=True)]
            share: float | Tensor = shares[0]
            if len(set(shares)) > 1:
                parts = zip(found, shares, strict=True)
                share = torch.cat([mean.new_full((len(m.mean),), value) for m, value in parts])
            mean, var = merged((earlier[0], earlier[1]), (mean, var), share)
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
