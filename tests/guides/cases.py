"""One guide of every kind, for one small model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyronorm import NormalizationModel, convert
from pyronorm.guides import (
    MAP,
    SWAG,
    BatchNoise,
    DiagonalLaplace,
    EffectiveBatchSize,
    Fixed,
    Flow,
    FullLaplace,
    Guide,
    LowRank,
    LowRankLaplace,
    MeanField,
    Mixture,
    MonteCarloBatchNorm,
    Paired,
    Point,
    PopulationStatistics,
    StatisticsBank,
    StochasticBatchNorm,
)
from pyronorm.likelihoods import Categorical
from pyronorm.priors import Standard
from tests.nets import mlp, train_briefly


def make_model(draws: int = 1, prior=None, network=None) -> NormalizationModel:
    network = train_briefly(mlp(), (5,), steps=3) if network is None else network
    model = NormalizationModel(convert(network), Categorical(), 50, prior, draws)
    if draws > 1:
        model.network.eval()  # batch statistics go with one draw only
    return model


def make_bank(model: NormalizationModel, rows: int = 40) -> StatisticsBank:
    """A bank with correlated channels and known moments."""
    network = model.network
    c = network.space.num_channels
    mean, std = network.reference_statistics()
    mean, std = mean.nan_to_num(nan=0.0), std.nan_to_num(nan=1.0)  # where there are no fixed ones
    mix = torch.randn(c, c) * 0.1
    eps = torch.full((c,), 1e-5)
    return StatisticsBank(
        space=network.space,
        batch_size=16,
        mean=mean + std * (torch.randn(rows, c) @ mix),
        var=std.square() * torch.exp(0.3 * torch.randn(rows, c)),
        reference_mean=mean,
        reference_var=std.square() - eps,
        eps=eps,
    )


_MAKE: dict[str, Callable[[NormalizationModel], Guide]] = {
    "Point": Point,
    "EffectiveBatchSize": lambda m: EffectiveBatchSize(m, 16.0),
    "EffectiveBatchSize.from_bank": lambda m: EffectiveBatchSize.from_bank(
        m, make_bank(m), "layer"
    ),
    "BatchNoise": lambda m: BatchNoise(m, 16.0),
    "Fixed": lambda m: Fixed(m, Standard(0.3, 0.2)),
    "MeanField": MeanField,
    "MeanField.neutral": lambda m: MeanField(m, neutral=True),
    "Mixture": lambda m: Mixture(m, 3),
    "Mixture.batch_size": lambda m: Mixture(m, 2, batch_size=16.0),
    "LowRank": lambda m: LowRank(m, rank=3),
    "LowRank.from_bank": lambda m: LowRank.from_bank(m, make_bank(m), rank=3),
    "LowRank.neutral": lambda m: LowRank.from_bank(m, make_bank(m), rank=3, neutral=True),
    "Paired": Paired,
    "Paired.from_bank": lambda m: Paired.from_bank(m, make_bank(m)),
    "Paired.neutral": lambda m: Paired(m, neutral=True),
    "Flow": Flow,
    "MAP": MAP,
    "SWAG": lambda m: SWAG(m, 3),
    "DiagonalLaplace": DiagonalLaplace,
    "LowRankLaplace": lambda m: LowRankLaplace(m, 3),
    "FullLaplace": FullLaplace,
    "PopulationStatistics": lambda m: PopulationStatistics(m, 30),
    "PopulationStatistics.from_bank": lambda m: PopulationStatistics.from_bank(m, make_bank(m), 50),
    "MonteCarloBatchNorm": lambda m: MonteCarloBatchNorm(m, make_bank(m)),
    "StochasticBatchNorm": lambda m: StochasticBatchNorm(m, make_bank(m)),
}

CASES = list(_MAKE)


def make_guide(case: str, model: NormalizationModel | None = None) -> Guide:
    return _MAKE[case](make_model() if model is None else model)
