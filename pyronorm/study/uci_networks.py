"""The networks and posteriors of the study on UCI tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyronorm import guides, networks
from pyronorm.baselines import fit_jackknife, predict_dropout
from pyronorm.conversion import convert, data_dependent_start
from pyronorm.datasets import TableSplit, TabularData
from pyronorm.datasets.uci import UCI
from pyronorm.errors import OptionError
from pyronorm.infer import (
    Optimization,
    as_posterior,
    collect_bank,
    estimate_population_statistics,
    fit,
)
from pyronorm.infer.predict import evaluate_draws
from pyronorm.latents import LatentNetwork
from pyronorm.likelihoods import Normal
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import Normalizer, Weight
from pyronorm.normalizers.freshness import batch_layers
from pyronorm.priors import BatchNoise
from pyronorm.study.checks import check_least, check_seeds
from pyronorm.study.device import make_fabric
from pyronorm.study.regression_scores import regression_scores
from pyronorm.study.table import Row

__all__ = ["BASELINE", "DATA", "KINDS", "POINTS", "UciNetworks", "UncertaintyUciSettings"]

DATA = "data"
"""The condition that rows have."""

BASELINE = "BN"
POINTS = (BASELINE, "dropout off", "plain", "weight, no noise")
"""Methods that predict with one network and a constant variance."""

_WIDTHS = {"protein-tertiary-structure": 100}  # of the hidden layers; 50 for the others
_JACKKNIFE = (
    10_000  # parameters, and examples: their gradients and covariance have to fit in memory
)
_AT_ONCE = 25  # passes of dropout; what predict_dropout does besides grows with their square
_START = 512  # examples that set the scale of weight normalization


@dataclass(frozen=True)
class UncertaintyUciSettings:
    """Networks on tables, and how they are trained.

    Attributes:
        tables: names of the UCI tables.
        seeds: one random split per seed.
        test_share: share of the rows to test on.
        validation_share: share of the other rows to fit the noise and choose the options on.
        steps: steps of Adam per network, rounded to whole passes over the data.
        batch_size: examples per step where the batch size is not the method's.
        lr: initial learning rate, annealed to 0 by half a cosine.
        weight_decay: L2 penalty of Adam on the network's parameters.
        batch_sizes: batch sizes of batch normalization, and ``n`` of fixed noise, to choose from;
            those above half of the training data are left out.
        dropouts: rates to choose from.
        prior: ``n`` of the prior of the learned posteriors.
        num_samples: draws per prediction; rows of the statistics bank.
        damping: of the jackknife.
    """

    tables: tuple[str, ...] = tuple(UCI)
    seeds: tuple[int, ...] = tuple(range(20))
    test_share: float = 0.2
    validation_share: float = 0.2
    steps: int = 4000
    batch_size: int = 32
    lr: float = 5e-3
    weight_decay: float = 1e-4
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    dropouts: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1, 0.2)
    prior: float = 32.0
    num_samples: int = 500
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        unknown = [name for name in self.tables if name not in UCI]
        if unknown or not self.tables or len(set(self.tables)) < len(self.tables):
            raise OptionError(
                f"study: tables must be different ones of {', '.join(UCI)}, got {self.tables}."
            )
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(
                    f"study: {name} must be between 0 and 1, got {getattr(self, name)}."
                )
        check_least("steps", self.steps, 1)
        check_least("num_samples", self.num_samples, 2)
        check_least("batch_size", self.batch_size, 2)
        for name in ("batch_sizes", "dropouts"):
            if not getattr(self, name):
                raise OptionError(f"study: {name} must have at least one value.")
        for size in self.batch_sizes:
            check_least("batch_sizes", size, 2)
        for rate in self.dropouts:
            if not 0 < rate < 1:
                raise OptionError(f"study: dropouts must be between 0 and 1, got {rate}.")
        for name in ("lr", "damping"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"study: {name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.weight_decay < math.inf:
            raise OptionError(f"study: weight_decay must be at least 0, got {self.weight_decay}.")
        if not 1 < self.prior < math.inf:
            raise OptionError(f"study: prior must be above 1, got {self.prior}.")


_Sampler = Callable[[Tensor], Tensor]
"""Draws of the prediction, (sample, example) in float64 on the CPU; the same ones in every call."""

_MakeGuide = Callable[[NormalizationModel], guides.Guide]
_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class UciNetworks:
    """One split of a table, and the networks trained on it.

    Each method trains networks of a kind, chooses among them by the RMSE of their mean prediction on
    validation data, and yields a row for each posterior of the chosen one.

    Attributes:
        settings: how to train and predict.
        data: the training and test data.
        validation: held out of the training data.
        seed: decides everything random.
        device: Fabric's accelerator: "auto", "cpu", "cuda", "mps".
    """

    settings: UncertaintyUciSettings
    data: TabularData
    validation: TableSplit
    seed: int
    device: str

    def batch(self) -> Iterator[Row]:
        """Batch normalization, and the posteriors that it leaves."""
        found = []
        for n in self._sizes():
            model, _ = self._fit(self._normalized(None), guides.Point, n)
            torch.manual_seed(self.seed)
            bank = collect_bank(model, self.data.train.x, self.settings.num_samples, n)
            found.append(
                (self._draws(model, guides.MonteCarloBatchNorm(model, bank)), (model, bank, n))
            )
        mcbn, (model, bank, n) = self._best(found)
        for method, sampler in {
            BASELINE: self._draws(model, guides.Point(model)),
            "MCBN": mcbn,
            "stochastic BN": self._draws(model, guides.StochasticBatchNorm(model, bank)),
            "BN, fixed law": self._draws(model, guides.BatchNoise(model, n)),
        }.items():
            yield self._row(method, sampler, n)

    def dropout(self) -> Iterator[Row]:
        """Monte-Carlo dropout in a network without normalization, and that network without masks."""
        found = []
        for rate in self.settings.dropouts:
            model, guide = self._fit(self._plain(rate), guides.Point)
            found.append((self._masks(model), (self._draws(model, guide), rate)))
        masks, (off, rate) = self._best(found)
        yield self._row("dropout off", off, rate)
        yield self._row("MC dropout", masks, rate)

    def plain(self) -> Iterator[Row]:
        """A network without normalization, and its jackknife intervals."""
        model, guide = self._fit(self._plain(), guides.Point)
        yield self._row("plain", self._draws(model, guide))
        x, y = self.data.train
        if max(sum(p.numel() for p in model.parameters()), len(y)) > _JACKKNIFE:
            return
        jackknife = fit_jackknife(model, (x, y[:, None]), damping=self.settings.damping)
        intervals = jackknife.intervals(self.data.test.x)
        target = self.data.test.y[:, None].to(intervals.mean)
        values = {
            "rmse": self._unit * float((intervals.mean - target).square().mean().sqrt()),
            "coverage": intervals.coverage(target),
            "width": self._unit * float(intervals.width.mean()),
        }
        yield Row("jackknife", self.seed, values, {DATA: self.data.name})

    def weight_point(self) -> Iterator[Row]:
        """Weight normalization without noise."""
        yield self._row("weight, no noise", self._draws(*self._weight(guides.Point)))

    def weight_fixed(self) -> Iterator[Row]:
        """Weight normalization with the law of batch noise."""
        found = []
        for n in self._sizes():
            make = partial(guides.BatchNoise, batch_size=n)
            found.append((self._draws(*self._weight(make)), n))
        sampler, n = self._best(found)
        yield self._row("weight, fixed noise", sampler, n)

    def weight_mean_field(self) -> Iterator[Row]:
        """Weight normalization with a learned independent posterior."""
        make = partial(guides.MeanField.from_batch_size, batch_size=self.settings.prior)
        yield self._row("weight, mean field", self._draws(*self._weight(make)))

    def weight_learned(self) -> Iterator[Row]:
        """Weight normalization with batch noise whose ``n`` is learned."""
        # From large to small: where n is small, gradients are too heavy-tailed to leave it.
        model, guide = self._weight(partial(guides.EffectiveBatchSize, batch_size=256.0))
        learned = cast(guides.EffectiveBatchSize, guide).batch_size
        n = float(learned.detach().log().mean().exp())
        yield self._row("weight, learned n", self._draws(model, guide), n)

    @property
    def _unit(self) -> float:
        """What 1 of a standardized target is in units of the target."""
        assert self.data.y_std is not None
        return self.data.y_std

    def _sizes(self) -> Sequence[int]:
        half = len(self.data.train.y) // 2
        return [n for n in self.settings.batch_sizes if n <= half] or [max(2, half)]

    def _network(self, **options: Any) -> nn.Module:
        torch.manual_seed(self.seed)
        width = _WIDTHS.get(self.data.name, 50)
        return networks.MLP(self.data.train.x.shape[1], hidden=(width, width), **options)

    def _plain(self, dropout: float = 0.0) -> nn.Module:
        return LatentNetwork(self._network(norm=None, dropout=dropout), plain=True)

    def _normalized(self, normalizer: Normalizer | None) -> nn.Module:
        return convert(self._network(), normalizer, example_input=self.data.train.x[:2])

    def _weight(self, make_guide: _MakeGuide) -> tuple[NormalizationModel, guides.Guide]:
        network = self._normalized(Weight())
        data_dependent_start(network, self.data.train.x[:_START])
        return self._fit(network, make_guide)

    def _fit(
        self,
        network: nn.Module,
        make_guide: _MakeGuide,
        batch_size: int | None = None,
    ) -> tuple[NormalizationModel, guides.Guide]:
        """Train a network with a guide, and the noise of its likelihood."""
        settings = self.settings
        x, y = self.data.train
        size = settings.batch_size if batch_size is None else batch_size
        batches = _FullBatches(x, y[:, None], min(size, len(y)), self.seed)
        epochs = max(1, round(settings.steps / len(batches)))
        likelihood = Normal(0.5, learned=True)
        model = NormalizationModel(network, likelihood, len(y), BatchNoise(settings.prior))
        guide = make_guide(model)

        def optimizer(groups: list[dict[str, Any]]) -> Optimizer:
            for group in groups:
                group["weight_decay"] = settings.weight_decay if group["name"] == "network" else 0.0
            return Adam(groups, lr=settings.lr)

        fit(
            model,
            guide,
            batches,
            epochs=epochs,
            optimization=Optimization(
                optimizer=optimizer,
                scheduler=lambda optimizer: CosineAnnealingLR(optimizer, epochs),
            ),
            fabric=make_fabric(self.device),
            seed=self.seed,
            progress=False,
        )
        if batch_layers(model.network):
            estimate_population_statistics(model, x)  # of all rows
        return model, guide

    def _draws(self, model: NormalizationModel, guide: guides.Guide) -> _Sampler:
        """Predictions with draws of a guide."""
        draws = 1 if guide.is_point else self.settings.num_samples

        @torch.no_grad()
        def sample(x: Tensor) -> Tensor:
            latents = as_posterior(guide, self.__class__.__name__).draw(
                model, draws, seed=self.seed
            )
            outputs = [output for _, output in evaluate_draws([(model, latents)], x)]
            return torch.cat(outputs, 1)[..., 0].double().cpu()

        return sample

    def _masks(self, model: NormalizationModel) -> _Sampler:
        """Predictions with masks of dropout."""

        @torch.no_grad()
        def sample(x: Tensor) -> Tensor:
            torch.manual_seed(self.seed)
            parts: list[Tensor] = []
            for start in range(0, self.settings.num_samples, _AT_ONCE):
                passes = min(_AT_ONCE, self.settings.num_samples - start)
                samples = predict_dropout(model, x, passes).samples
                assert samples is not None
                parts.append(samples[..., 0].double().cpu())
            return torch.cat(parts)

        return sample

    def _best(self, found: Sequence[tuple[_Sampler, _Kept]]) -> tuple[_Sampler, _Kept]:
        """The prediction with the least RMSE on validation data, and what belongs to it."""
        x, y = self.validation
        return min(found, key=lambda pair: float((pair[0](x).mean(0) - y).square().mean()))

    def _row(self, method: str, sampler: _Sampler, chosen: float | None = None) -> Row:
        values = regression_scores(
            sampler(self.validation.x),
            self.validation.y.double(),
            sampler(self.data.test.x),
            self.data.test.y.double(),
            self._unit,
        )
        extra = {} if chosen is None else {"chosen": float(chosen)}
        return Row(method, self.seed, {**values, **extra}, {DATA: self.data.name})


class _FullBatches:
    """Shuffled batches of one size; what is left over of a pass is left out, as in the paper.

    A rest of a few rows would have statistics with far more noise than the others.
    """

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.y) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.y), generator=self.generator)
        for rows in order[: len(self) * self.size].view(-1, self.size):
            yield self.x[rows], self.y[rows]


KINDS: Mapping[str, Callable[[UciNetworks], Iterator[Row]]] = {
    "batch": UciNetworks.batch,
    "dropout": UciNetworks.dropout,
    "plain": UciNetworks.plain,
    "weight": UciNetworks.weight_point,
    "weight fixed": UciNetworks.weight_fixed,
    "weight mean field": UciNetworks.weight_mean_field,
    "weight learned n": UciNetworks.weight_learned,
}
"""Kinds of networks, by name."""
