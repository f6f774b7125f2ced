"""The methods that are compared: a normalizer with a guide, and what comes of one network's bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import pyronorm as pn

NOISE = 32.0
"""Batch size of the explicit noise, in effective values per channel."""

_PRIOR = pn.priors.BatchNoise(NOISE)

Make = Callable[[pn.NormalizationModel], pn.guides.Guide]


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        normalizer: replaces batch normalization; None for batch normalization itself.
        guide: makes the guide.
        prior: of the latents.
    """

    normalizer: pn.normalizers.Normalizer | None
    guide: Make
    prior: pn.priors.Prior = _PRIOR


def _batch_noise(model: pn.NormalizationModel) -> pn.guides.Guide:
    return pn.guides.BatchNoise(model, NOISE)


def _mean_field(model: pn.NormalizationModel) -> pn.guides.Guide:
    return pn.guides.MeanField.from_batch_size(model, NOISE)


def _low_rank(model: pn.NormalizationModel) -> pn.guides.Guide:
    return pn.guides.LowRank(model, init_std=NOISE**-0.5)


def _low_rank_of(model: pn.NormalizationModel, bank: pn.StatisticsBank) -> pn.guides.Guide:
    return pn.guides.LowRank.from_bank(model, bank, rank=min(10, len(bank.mean) - 1))


METHODS = {
    "batch, point": Method(None, pn.guides.Point),
    "batch, batch noise": Method(None, _batch_noise),
    "batch, mean-field": Method(None, _mean_field),
    "weight, point": Method(pn.normalizers.Weight(), pn.guides.Point),
    "weight, batch noise": Method(pn.normalizers.Weight(), _batch_noise),
    "weight, mean-field": Method(pn.normalizers.Weight(), _mean_field),
    "weight, low-rank": Method(pn.normalizers.Weight(), _low_rank),
    "group, point": Method(pn.normalizers.Group(4), pn.guides.Point),
    "group, batch noise": Method(pn.normalizers.Group(4), _batch_noise),
    "group, mean-field": Method(pn.normalizers.Group(4), _mean_field),
}
"""The first is batch normalization as everybody trains it: its noise is implicit."""

IMPLICIT = "batch, point"
"""The method whose bank is the implicit posterior."""

FROM_BANK: dict[str, Callable[[pn.NormalizationModel, pn.StatisticsBank], pn.guides.Guide]] = {
    "batch, Monte Carlo": pn.guides.MonteCarloBatchNorm,
    "batch, stochastic": pn.guides.StochasticBatchNorm,
    "batch, low-rank of the bank": _low_rank_of,
}
"""Posteriors of the network that was trained with implicit noise; nothing is trained again."""


def make_network(name: str, *, tiny: bool) -> nn.Module:
    """A network of the comparison, with batch normalization."""
    if name == "all-cnn":
        return pn.networks.AllCNN(width=0.125 if tiny else 1.0)
    return pn.networks.ResNet18(width=4 if tiny else 64)


NETWORKS = ("all-cnn", "resnet-18")
"""Networks of the comparison, by the names of the command line."""
