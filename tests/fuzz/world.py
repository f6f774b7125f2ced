"""Right values of everything that the public functions take, made when they are asked for."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyronorm as pn

__all__ = ["World"]


class World:
    """Small objects that belong together, new in each world.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.x = torch.randn(24, 3)
        self.y = torch.arange(24) % 2
        self.values = torch.randn(24)

    @property
    def plain(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()

    @cached_property
    def network(self) -> nn.Module:
        plain = self.plain
        plain[1].num_batches_tracked.fill_(1)
        converted = pn.convert(plain)
        pn.estimate_population_statistics(converted, self.x)
        return converted.eval()

    @cached_property
    def latent(self) -> pn.LatentNetwork:
        return pn.LatentNetwork(self.network)

    @property
    def layer(self) -> pn.LatentNorm:
        return self.latent.layers[0]

    @cached_property
    def model(self) -> pn.NormalizationModel:
        return pn.NormalizationModel(self.network, pn.likelihoods.Categorical(), 24)

    @cached_property
    def weights(self) -> pn.NormalizationModel:
        kind = pn.normalizers.Weight()
        network = pn.convert(self.plain, kind, example_input=self.x).eval()
        return pn.NormalizationModel(network, pn.likelihoods.Categorical(), 24)

    @cached_property
    def regression(self) -> pn.NormalizationModel:
        plain = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)
        )
        plain[1].num_batches_tracked.fill_(1)
        network = pn.convert(plain)
        pn.estimate_population_statistics(network, self.x)
        return pn.NormalizationModel(network.eval(), pn.likelihoods.Normal(1.0), 24)

    @cached_property
    def plain_regression(self) -> pn.NormalizationModel:
        plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
        network = pn.LatentNetwork(plain, plain=True)
        return pn.NormalizationModel(network, pn.likelihoods.Normal(1.0), 24)

    @property
    def space(self) -> pn.LatentSpace:
        return self.model.space

    @cached_property
    def guide(self) -> pn.guides.MeanField:
        return pn.guides.MeanField(self.model)

    @property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x, self.y

    @cached_property
    def curvature(self) -> pn.guides.Curvature:
        return pn.collect_curvature(self.model, self.pairs, pn.guides.Point(self.model))

    @cached_property
    def laplace(self) -> pn.guides.FullLaplace:
        return pn.guides.FullLaplace.from_curvature(self.model, self.curvature)

    @cached_property
    def bank(self) -> pn.StatisticsBank:
        return pn.collect_bank(self.model, self.x, 32, 12, seed=0)

    @cached_property
    def draws(self) -> pn.Draws:
        return self.guide.draw(self.model, 6, seed=0)

    @property
    def shift(self) -> torch.Tensor:
        return torch.zeros(8)

    @property
    def scale(self) -> torch.Tensor:
        return torch.ones(8)

    @cached_property
    def prediction(self) -> Any:
        return pn.predict(self.model, self.guide, self.x, 4, seed=0)

    @cached_property
    def real_prediction(self) -> Any:
        return pn.predict(self.regression, pn.guides.MeanField(self.regression), self.x, 4, seed=0)

    @property
    def idata(self) -> Any:
        return _idata()

    @property
    def images(self) -> Any:
        split = pn.datasets.Split(torch.rand(12, 1, 4, 4), torch.arange(12) % 2)
        return pn.datasets.ImageData("random", split, split, 2)

    @property
    def table(self) -> Any:
        return pn.datasets.Table("t", self.x, self.values, ("a", "b", "c"), "y")

    @property
    def tabular(self) -> Any:
        return self.table.split()

    @cached_property
    def history(self) -> Any:
        return pn.fit(self.model, self.guide, self.pairs, epochs=1, progress=False)

    @cached_property
    def saved(self) -> Path:
        path = self.folder / "saved.safetensors"
        pn.save(path, self.model, self.guide)
        return path

    @property
    def ranks(self) -> Any:
        ranks = torch.randint(0, 10, (30, 8))
        return pn.diagnostics.Calibration(ranks, ranks, 9, self.space.channel_labels)


@cache
def _idata() -> Any:
    world = World(Path())
    return pn.to_arviz(world.model, world.guide, world.pairs, 32, seed=0)
