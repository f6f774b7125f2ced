"""Noise learned by what it predicts: the log of the mean over draws, on held-out data."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyronorm.checks import Count, Positive, checked
from pyronorm.errors import DataError, OptionError
from pyronorm.guides import EffectiveBatchSize
from pyronorm.infer.data import Data, gather
from pyronorm.infer.fit import fit
from pyronorm.infer.options import Objective
from pyronorm.latents import Per
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

__all__ = ["PredictiveDensity", "learn_noise"]


class PredictiveDensity(Trace_ELBO):
    r"""The log predictive density of the data, in place of an ELBO.

    .. math:: \sum_i \log \frac1K \sum_{k=1}^K p(y_i | x_i, z_k), \qquad z_k \sim q

    The ELBO has the logarithm within the mean and a KL divergence: it asks how much noise the training
    data leave room for. This asks how much noise predicts best, and has no prior. Gradients are
    pathwise. The mean over ``K`` draws is unbiased, its logarithm too low by about half of its relative
    variance, so that few draws favour little noise.

    Use it as ``pyronorm.Objective(elbo=pyronorm.infer.PredictiveDensity(8))``, on data that the network
    was not trained on; :func:`pyronorm.learn_noise` does.

    Args:
        num_draws: ``K``.

    Raises:
        OptionError: in training, if examples have weights, or the guide is not reparameterized.

    Source: Morningstar, Alemi & Dillon, "PAC^m-Bayes: Narrowing the Empirical Risk Gap in the
    Misspecified Bayesian Regime" (AISTATS 2022), without its divergence.
    """

    @checked
    def __init__(self, num_draws: Count = 8) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            num_particles=num_draws, vectorize_particles=True, max_plate_nesting=2
        )

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative of it, to be differentiated.

        Args:
            model: a Pyro model.
            guide: its guide.
            args: arguments of both.
            kwargs: arguments of both.
        """
        if len(args) > 2 or "weight" in kwargs:
            raise OptionError(
                "PredictiveDensity: takes pairs (x, y): a weight is not defined for the log of a mean."
            )
        traces: Any = self._get_traces
        ((model_trace, guide_trace),) = traces(model, guide, args, kwargs)
        for name in guide_trace.stochastic_nodes:
            if not guide_trace.nodes[name]["fn"].has_rsample:
                raise OptionError(
                    f"PredictiveDensity: the guide's site {name!r} has draws without gradients."
                )
        (observed,) = (model_trace.nodes[name] for name in model_trace.observation_nodes)
        density: Tensor = observed["unscaled_log_prob"]
        if self.num_particles > 1:
            density = density.logsumexp(0) - math.log(self.num_particles)
        loss: Tensor = -(observed["scale"] * density).sum()
        return loss

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The same as a number."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))


@checked
def learn_noise(
    model: NormalizationModel,
    data: Data,
    per: Per | str = Per.LAYER,
    *,
    start: float = 64.0,
    num_draws: Count = 8,
    epochs: Count = 30,
    batch_size: Count = 256,
    lr: Positive = 0.1,
    seed: Seed = 0,
    progress: bool = True,
) -> EffectiveBatchSize:
    r"""Learn how much noise a trained network predicts best with, per layer, on held-out data.

    Maximizes :class:`~pyronorm.infer.PredictiveDensity` over the batch sizes ``n`` of the law of batch
    noise. The network and the likelihood stay as they are. A handful of numbers is learned, so hundreds
    of examples are enough for one per layer; judge the result on others, as
    :func:`pyronorm.calibrate` with ``learn=`` does, beside a temperature, which often does as much.

    Args:
        model: the model with a trained network.
        data: pairs ``(x, y)`` that the network was not trained on; it is gathered in memory.
        per: what has an ``n`` of its own: "network", "layer" or "channel".
        start: ``n`` at the beginning.
        num_draws: draws per step.
        epochs: passes over the data.
        batch_size: examples per step.
        lr: learning rate of Adam, of :math:`\log(n - 1)`.
        seed: for draws and the order of the data.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The guide, for :func:`pyronorm.predict` and the rest; ``guide.batch_size`` has the ``n``.

    Raises:
        DataError: if the data have no targets, or weights.
        OptionError: if a number is out of range, or the network is plain.
        StatisticsError: if population statistics are missing or stale.
    """
    held_out = gather(data, batch_size)
    y, weight = held_out.targets("learn_noise")
    if weight is not None:
        raise DataError("learn_noise: takes pairs (x, y), without weights.")
    likelihood = copy.deepcopy(model.likelihood).requires_grad_(False)
    judge = NormalizationModel(model.network, likelihood, len(y))
    guide = EffectiveBatchSize(judge, start, per)
    fit(
        judge,
        guide,
        (held_out.x, y),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        objective=Objective(elbo=PredictiveDensity(num_draws)),
        train_network=False,
        seed=seed,
        progress=progress,
    )
    return guide
