"""One normalizer of every kind, by the name of its class."""

from __future__ import annotations

from pyronorm import normalizers
from pyronorm.normalizers import Normalizer

NORMALIZERS: dict[str, Normalizer | None] = {
    "Batch": None,  # what a network with batch normalization is converted to by itself
    "Population": normalizers.Population(),
    "Ghost": normalizers.Ghost(4),
    "Exclusive": normalizers.Exclusive(),
    "SyncBatch": normalizers.SyncBatch(),
    "Group": normalizers.Group(2),
    "Layer": normalizers.Layer(),
    "Instance": normalizers.Instance(),
    "RMS": normalizers.RMS(),
    "Deviation": normalizers.Deviation(),
    "Weight": normalizers.Weight(),
    "Analytic": normalizers.Analytic(),
    "BatchWhitening": normalizers.BatchWhitening(2),
    "GroupWhitening": normalizers.GroupWhitening(2),
}
