"""What all methods of a comparison share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pyronorm.checks import Count, NotNegative, Positive, check_fields
from pyronorm.errors import OptionError
from pyronorm.randomness import SeedNumber
from pyronorm.study.architectures import check_network
from pyronorm.study.checks import check_data, check_least, check_seeds
from pyronorm.study.methods import DEFAULT_METHODS, choose_methods

__all__ = ["Settings", "Training"]

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true")


@dataclass(frozen=True)
class Training:
    """How networks are trained: the same for all methods that are compared.

    Attributes:
        epochs: passes over the training data.
        batch_size: examples per step.
        lr: initial learning rate of Adam, annealed to 0 by half a cosine.
        weight_decay: of AdamW, for the network's parameters.
        augment: shift training images at random by up to an eighth of their width, and mirror half of
            them where a mirror image is of the same class.
        precision: Lightning Fabric's: "32-true", "bf16-mixed", ...
    """

    epochs: Count = 15
    batch_size: Count = 64
    lr: Positive = 5e-3
    weight_decay: NotNegative = 0.0
    augment: bool = False
    precision: str = "32-true"

    def __post_init__(self) -> None:
        check_fields(self)
        check_least("batch_size", self.batch_size, 2)  # one value has no batch statistics
        if self.precision not in _PRECISIONS:
            raise OptionError(
                f"study: precision must be one of {', '.join(_PRECISIONS)}, got {self.precision!r}."
            )


@dataclass(frozen=True)
class Settings:
    """What all methods of a comparison share.

    Attributes:
        data: name of the data set.
        network: name of the network, one of ``pyronorm.study.NETWORKS``.
        methods: names of the rows, see :func:`pyronorm.study.choose_methods`.
        seeds: one run of every method per seed; a seed decides split, initial weights, batches and
            draws.
        num_train: training images, drawn by class; None for all.
        num_test: test images, drawn by class; None for all.
        training: how the networks are trained.
        noise: ``n`` of the prior and of fixed noise; None for the batch size.
        num_samples: draws of the latents per prediction.
        bank_rows: training batches in the statistics bank.
        draws_curve: numbers of draws, for posteriors from a bank also judged one by one.
        arviz_samples: draws in the ArviZ files of the first seed.
        timed_predictions: how often a prediction is timed; the fastest counts.
        learning_rates: rates that every training chooses from, by calibrated NLL on images held out of
            its training data; empty for ``training.lr``. The choice costs a training per rate.
        num_validation: images held out for the choice.
    """

    data: str = "digits"
    network: str = "small-conv"
    methods: tuple[str, ...] = DEFAULT_METHODS
    seeds: tuple[SeedNumber, ...] = (0, 1, 2, 3, 4)
    num_train: Count | None = None
    num_test: Count | None = None
    training: Training = field(default_factory=Training)
    noise: float | None = None
    num_samples: Count = 32
    bank_rows: Count = 128
    draws_curve: tuple[Count, ...] = ()
    arviz_samples: Count = 200
    timed_predictions: Count = 3
    learning_rates: tuple[Positive, ...] = ()
    num_validation: Count = 500

    def __post_init__(self) -> None:
        check_fields(self)
        check_data(self.data)
        check_network(self.network)
        if not choose_methods(self.methods):
            raise OptionError("study: no methods; name one at least, or a normalizer, or all.")
        check_seeds(self.seeds)
        for name in ("num_train", "num_test"):
            if getattr(self, name) is not None:
                check_least(name, getattr(self, name), 2)
        if self.noise is not None and not 1 < self.noise < math.inf:
            raise OptionError(f"study: noise must be finite and above 1, got {self.noise}.")
        check_least("bank_rows", self.bank_rows, max((11, *self.draws_curve)))

    @property
    def noise_batch_size(self) -> float:
        """``n`` of the prior and of fixed noise."""
        return self.training.batch_size if self.noise is None else self.noise
