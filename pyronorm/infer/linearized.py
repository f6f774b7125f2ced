"""Predictions of the network that is linear in its latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.errors import DataError
from pyronorm.guides import Laplace
from pyronorm.infer.batch import split
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.jacobian import latent_jacobian
from pyronorm.infer.modes import evaluation_mode
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

__all__ = ["linearized_outputs", "predict_linearized"]


@torch.no_grad()
@checked
def predict_linearized(
    model: NormalizationModel,
    posterior: Laplace,
    data: Data,
    num_samples: Count = 32,
    *,
    batch_size: Count = 256,
    keep_samples: bool = True,
    seed: Seed = None,
) -> Prediction:
    r"""Predict with the network linearized in its latents, as Laplace's approximation sees it.

    Outputs are :math:`f(x, \hat z) + J(x)\,(z - \hat z)` for draws of ``z``, the same draws for
    all examples. The Gauss-Newton matrix is the Hessian of *that* model, so its predictions fit the
    posterior also where it is wide, and where the network itself, sampled by :func:`pyronorm.predict`,
    bends away and predicts too widely.

    Args:
        model: the model.
        posterior: one of the Laplace guides.
        data: as in :func:`pyronorm.predict`.
        num_samples: number of draws.
        batch_size: examples at once, where the data do not come in batches.
        keep_samples: whether to keep the outputs given each draw.
        seed: for the draws, see :func:`pyronorm.randomness.seeded`.

    Raises:
        DataError: if there are no data, or inputs are objects.
        ShapeError: if outputs are dense, or the posterior is of another network.
        StatisticsError: if population statistics are missing or stale, or the weights are others.

    Source: Immer, Korzepa & Bauer, "Improving Predictions of Bayesian Neural Nets via Local
    Linearization" (AISTATS 2021).
    """
    draws = posterior.draw(model, num_samples, seed=seed)
    z = torch.cat([draws.shift, draws.scale.log()], 1)
    parts = []
    for output, jacobian in _jacobians(model, posterior, data, batch_size, "predict_linearized"):
        moved = torch.einsum("nkd,sd->snk", jacobian, z - posterior.loc.to(z))
        outputs = output + moved.reshape(num_samples, *output.shape)
        parts.append(model.likelihood.predict(outputs, keep_samples=keep_samples))
    return Prediction.join(parts)


@torch.no_grad()
@checked
def linearized_outputs(
    model: NormalizationModel, posterior: Laplace, data: Data, *, batch_size: Count = 256
) -> tuple[Tensor, Tensor]:
    r"""The Gaussian of the linearized network's outputs, exactly.

    :math:`f(x) \sim \mathcal N(f(x, \hat z),\; J(x)\,\Sigma\,J(x)^\top)`, for each example. With a
    normal likelihood the predictive distribution is normal with that mean, and that variance plus the
    noise.

    Args:
        model: the model.
        posterior: one of the Laplace guides.
        data: as in :func:`pyronorm.predict`.
        batch_size: examples at once, where the data do not come in batches.

    Returns:
        The mean, ``(example, out)``, and the covariance, ``(example, out, out)``.

    Raises:
        DataError: if there are no data, or inputs are objects.
        ShapeError: if outputs are dense, or the posterior is of another network.
        StatisticsError: if population statistics are missing or stale, or the weights are others.
    """
    found = [
        (output.reshape(len(output), -1), posterior.output_covariance(jacobian.to(posterior.loc)))
        for output, jacobian in _jacobians(model, posterior, data, batch_size, "linearized_outputs")
    ]
    mean, covariance = zip(*found, strict=True)
    return torch.cat(mean), torch.cat(covariance)


def _jacobians(
    model: NormalizationModel, posterior: Laplace, data: Data, batch_size: int, where: str
) -> Iterator[tuple[Tensor, Tensor]]:
    network = model.network
    network.check_statistics()
    posterior.check(model.space)
    posterior.check_weights(model)
    empty = True
    for batch in as_batches(data, batch_size):
        with evaluation_mode(model):
            x = split(batch).to(network).x
            yield latent_jacobian(network, x, posterior.loc.to(network.like), where)
        empty = False
    if empty:
        raise DataError("data: there is no batch.")
