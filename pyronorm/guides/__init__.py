"""Posteriors of the latents, explicit and implicit alike, as Pyro guides."""

from pyronorm.guides.bank import StatisticsBank
from pyronorm.guides.base import Guide
from pyronorm.guides.batch_noise import BatchNoise
from pyronorm.guides.curvature import Curvature
from pyronorm.guides.diagonal_laplace import DiagonalLaplace
from pyronorm.guides.effective_batch_size import EffectiveBatchSize
from pyronorm.guides.fixed import Fixed
from pyronorm.guides.flow import Flow
from pyronorm.guides.full_laplace import FullLaplace
from pyronorm.guides.hyper import HyperGuide
from pyronorm.guides.laplace import Laplace
from pyronorm.guides.low_rank import LowRank
from pyronorm.guides.low_rank_laplace import LowRankLaplace
from pyronorm.guides.maximum import MAP
from pyronorm.guides.mean_field import MeanField
from pyronorm.guides.mixture import Mixture
from pyronorm.guides.monte_carlo import MonteCarloBatchNorm
from pyronorm.guides.paired import Paired
from pyronorm.guides.point import Point
from pyronorm.guides.population_statistics import PopulationStatistics
from pyronorm.guides.stochastic_batch_norm import StochasticBatchNorm
from pyronorm.guides.swag import SWAG

__all__ = [
    "MAP",
    "SWAG",
    "BatchNoise",
    "Curvature",
    "DiagonalLaplace",
    "EffectiveBatchSize",
    "Fixed",
    "Flow",
    "FullLaplace",
    "Guide",
    "HyperGuide",
    "Laplace",
    "LowRank",
    "LowRankLaplace",
    "MeanField",
    "Mixture",
    "MonteCarloBatchNorm",
    "Paired",
    "Point",
    "PopulationStatistics",
    "StatisticsBank",
    "StochasticBatchNorm",
]
