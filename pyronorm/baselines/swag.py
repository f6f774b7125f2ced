"""SWAG over all weights of a network."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, Natural, checked
from pyronorm.display import displayed
from pyronorm.errors import OptionError
from pyronorm.guides import Guide, Point
from pyronorm.infer.callbacks import Callback
from pyronorm.infer.data import Data
from pyronorm.infer.ensemble import Ensemble
from pyronorm.infer.path import Path
from pyronorm.infer.population import estimate_population_statistics
from pyronorm.model import NormalizationModel
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed, seeded

if TYPE_CHECKING:
    from pyronorm.infer.trainer import Trainer

__all__ = ["CollectWeights", "WeightSWAG"]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class WeightSWAG:
    r"""A Gaussian of all weights, with the moments of a path of training.

    .. math::
        q(w) = \mathcal N\Big(\bar w,\; \tfrac12 \mathrm{diag}(v) + \tfrac{1}{2(K-1)} D D^\top\Big)

    Attributes:
        model: the model that was trained.
        parameters: names of the parameters that the weights are, in their order.
        mean: :math:`\bar w`, shape ``(weight,)``.
        variance: ``v``, of the path, biased.
        deviations: ``D``, the last ``K`` deviations from the mean up to them, shape ``(weight, K)``.
    """

    model: NormalizationModel
    parameters: tuple[str, ...]
    mean: Float[Tensor, " weight"]
    variance: Float[Tensor, " weight"]
    deviations: Float[Tensor, "weight rank"]

    @torch.no_grad()
    @checked
    def draw_weights(
        self, num_samples: Count, *, seed: Seed = None
    ) -> Float[Tensor, "sample weight"]:
        r"""Draw weights, :math:`\bar w + \sqrt{v/2}\, \epsilon + D \eta / \sqrt{2 (K - 1)}`.

        Args:
            num_samples: how many.
            seed: see :func:`pyronorm.randomness.seeded`.
        """
        size, rank = self.deviations.shape
        mean = self.mean
        with seeded(seed, mean):
            own = torch.randn(num_samples, size, dtype=mean.dtype, device=mean.device)
            common = torch.randn(num_samples, rank, dtype=mean.dtype, device=mean.device)
        low_rank = common @ self.deviations.T / math.sqrt(2 * (rank - 1))
        return mean + own * (self.variance / 2).sqrt() + low_rank

    @checked
    def draw_networks(
        self,
        data: Data,
        num_samples: Count = 16,
        *,
        num_batches: Count | None = None,
        batch_size: Count = 256,
        seed: Seed = None,
        progress: bool = True,
    ) -> Ensemble:
        """Networks with drawn weights, each with population statistics of its own: a posterior.

        ::

            networks = swag.posterior(model).draw_networks(train)
            pn.predict(networks.model, networks, x, 1)

        Each is a copy of the model in memory. Latents are neutral.

        Args:
            data: training data, for the population statistics of batch normalizers, as in
                :func:`pyronorm.estimate_population_statistics`.
            num_samples: how many networks.
            num_batches: how many batches of the data to use; None for all.
            batch_size: examples per batch, where the data do not come in batches.
            seed: for the weights.
            progress: show a progress bar; see :mod:`pyronorm.progress`.

        Raises:
            DataError: if there is no batch.
            StatisticsError: if a drawn network's statistics are not finite.
        """
        members = []
        with progress_bar("networks", num_samples, show=progress) as bar:
            for weights in self.draw_weights(num_samples, seed=seed):
                model = copy.deepcopy(self.model)
                _set_weights(model.network, self.parameters, weights)
                estimate_population_statistics(model, data, num_batches, batch_size, progress=False)
                members.append((model, Point(model)))
                bar.advance()
        return Ensemble(members)


class CollectWeights(Callback):
    r"""Collect moments of the path that all weights of a network take in training, for SWAG.

    ::

        swag = CollectWeights(rank=20)
        sgd = pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.03))
        pn.fit(model, pn.guides.Point(model), train, epochs=10, optimization=sgd, callbacks=[swag])
        networks = swag.posterior(model).draw_networks(train)

    For a network that is trained already and goes on at a constant rate. The rate decides how wide the
    path is, so choose it on held-out data.

    Args:
        rank: ``K``, how many of the last deviations to keep, at least 2. They take ``K`` times the
            memory of the weights, in float64.
        after: steps to leave out first.
        every: steps from one point of the path to the next.

    Raises:
        OptionError: if ``rank`` is below 2; in training, if no weight of the network is trained, or
            the latents are not a point without parameters.

    Source: Maddox, Garipov, Izmailov, Vetrov & Wilson, "A Simple Baseline for Bayesian Uncertainty in
    Deep Learning" (NeurIPS 2019), algorithm 1, where points are taken once an epoch.
    """

    @checked
    def __init__(self, rank: Count = 20, *, after: Natural = 0, every: Count = 1) -> None:
        self._path = Path(rank, "CollectWeights")
        self.rank, self.after, self.every = rank, after, every
        self._names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """How many points have been collected."""
        return len(self._path)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Find the weights that are trained."""
        guide = trainer.guide
        if not (isinstance(guide, Guide) and guide.is_point and not list(guide.parameters())):
            raise OptionError(
                f"CollectWeights: needs guides.Point, got {type(guide).__name__}: the networks that are "
                "drawn have neutral latents."
            )
        trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        named = trainer.model.network.named_parameters()
        names = tuple(name for name, p in named if id(p) in trained)
        if not names:
            raise OptionError("CollectWeights: no weight of the network is trained.")
        if len(self) and names != self._names:
            raise OptionError("CollectWeights: has a path of other weights. Take a new one.")
        self._names = names

    def on_step_end(self, trainer: Trainer) -> None:
        """Take a point."""
        if trainer.steps <= self.after or (trainer.steps - self.after - 1) % self.every:
            return
        parameters = dict(trainer.model.network.named_parameters())
        self._path.add(torch.cat([parameters[n].detach().reshape(-1) for n in self._names]))

    @checked
    def posterior(self, model: NormalizationModel) -> WeightSWAG:
        """The Gaussian of the path.

        Args:
            model: the model that was trained.

        Raises:
            OptionError: if fewer than 2 points have been collected, or of other weights.
        """
        mean, variance, deviations = self._path.summary()
        parameters = dict(model.network.named_parameters())
        sizes = [parameters[n].numel() for n in self._names if n in parameters]
        if len(sizes) < len(self._names) or sum(sizes) != len(mean):
            raise OptionError("CollectWeights: the model has other weights than those of the path.")
        return WeightSWAG(model, self._names, mean, variance, deviations)

    def state_dict(self) -> dict[str, Any]:
        """What has been collected."""
        return {"names": list(self._names), **self._path.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self._names = tuple(state["names"])
        self._path.load_state_dict(state)


@torch.no_grad()
def _set_weights(network: nn.Module, names: tuple[str, ...], weights: Tensor) -> None:
    parameters = dict(network.named_parameters())
    sizes = [parameters[name].numel() for name in names]
    for name, part in zip(names, weights.split(sizes), strict=True):
        parameters[name].copy_(part.view_as(parameters[name]))
