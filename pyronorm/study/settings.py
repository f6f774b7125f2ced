"""What all methods of a comparison share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyronorm import datasets
from pyronorm.errors import OptionError

__all__ = ["Settings"]

_LEAST = {
    "epochs": 1,
    "batch_size": 2,  # one value has no batch statistics
    "num_samples": 1,
    "bank_rows": 11,  # for a Gaussian of rank 10
    "arviz_samples": 1,
}


@dataclass(frozen=True)
class Settings:
    """What all methods of a comparison share.

    Attributes:
        data: name of the data set.
        seeds: one run of every method per seed; a seed decides split, initial weights, batches and
            draws.
        epochs: passes over the training data.
        batch_size: examples per step; also the ``n`` of the prior and of fixed noise.
        lr: initial learning rate of Adam, annealed to 0 by half a cosine.
        num_samples: draws of the latents per prediction.
        bank_rows: training batches in the statistics bank.
        arviz_samples: draws in the ArviZ files.
        device: "auto", "cpu", "cuda", ...
    """

    data: str = "digits"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 15
    batch_size: int = 64
    lr: float = 5e-3
    num_samples: int = 32
    bank_rows: int = 128
    arviz_samples: int = 200
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.data not in datasets.DATASETS:
            raise OptionError(
                f"compare: no data set {self.data!r}; choose from {', '.join(datasets.DATASETS)}."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise OptionError(
                f"compare: seeds must be different and not negative, got {self.seeds}."
            )
        if not 0 < self.lr < math.inf:
            raise OptionError(f"compare: lr must be positive and finite, got {self.lr}.")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise OptionError(
                    f"compare: {name} must be at least {least}, got {getattr(self, name)}."
                )
