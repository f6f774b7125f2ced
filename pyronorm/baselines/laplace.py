"""Laplace's approximation for the weights of the last layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, Positive, checked
from pyronorm.display import displayed
from pyronorm.errors import ConversionError, DataError, OptionError
from pyronorm.infer.batch import split
from pyronorm.infer.counts import example_counts
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.lengths import batches_of
from pyronorm.infer.modes import evaluation_mode
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed, seeded
from pyronorm.stats.search import minimize_positive

__all__ = ["LastLayerLaplace", "fit_laplace"]

_MOST = 8000  # parameters: their covariance in float64 takes half a gigabyte


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class LastLayerLaplace:
    r"""A Gaussian posterior of the last linear layer's weights, the rest of the network as it is.

    Attributes:
        model: the model.
        layer: name of the last layer.
        mean: weights, bias in the last column, shape ``(out, feature)``.
        root: :math:`R` with the covariance :math:`R R^\top`, shape ``(parameter, parameter)``,
            parameters in the order of ``mean.flatten()``.
        prior_precision: of the Gaussian prior.
    """

    model: NormalizationModel
    layer: str
    mean: Float[Tensor, "out feature"]
    root: Float[Tensor, "parameter parameter"]
    prior_precision: Positive

    @torch.no_grad()
    @checked
    def predict(
        self,
        data: Data,
        num_samples: Count = 32,
        *,
        batch_size: Count = 256,
        keep_samples: bool = True,
        seed: Seed = None,
    ) -> Prediction:
        """Predict with draws of the last layer's weights; the same draws serve all examples.

        Args:
            data: as in :func:`pyronorm.predict`.
            num_samples: number of draws.
            batch_size: examples at once, where the data do not come in batches.
            keep_samples: whether to keep the mean given each draw.
            seed: for the draws, see :func:`pyronorm.randomness.seeded`.

        Raises:
            OptionError: if ``num_samples`` is below 1, or the layer has been trained since.
            DataError: if there are no data.
        """
        if num_samples < 1:
            raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
        if not torch.equal(_weights(_linear(self.model, self.layer)), self.mean):
            raise OptionError(
                f"LastLayerLaplace: {self.layer!r} has been changed since. Call fit_laplace again."
            )
        with seeded(seed, self.root):
            noise = torch.randn(num_samples, len(self.root), device=self.root.device).to(self.root)
        draws = (self.mean.flatten() + noise @ self.root.T).unflatten(1, self.mean.shape)
        likelihood = self.model.likelihood
        parts: list[Prediction] = []
        for features, output, *_ in _evaluate(self.model, self.layer, data, batch_size):
            outputs = torch.einsum("skd,nd->snk", draws, features).to(output)
            parts.append(likelihood.predict(outputs, keep_samples=keep_samples))
        return Prediction.join(parts)


@torch.no_grad()
@checked
def fit_laplace(
    model: NormalizationModel,
    data: Data,
    *,
    prior_precision: Positive | None = None,
    layer: str | None = None,
    batch_size: Count = 256,
    progress: bool = True,
) -> LastLayerLaplace:
    r"""Approximate the posterior of the last linear layer by a Gaussian around its weights.

    :math:`\mathcal N(\hat\theta, (G + \delta I)^{-1})` with
    :math:`G = \sum_i \Lambda_i \otimes \phi_i\phi_i^\top`, features :math:`\phi` with a 1 for the bias,
    and :math:`\Lambda` the expected curvature of the log likelihood in the output
    (:meth:`pyronorm.likelihoods.Likelihood.curvature`): :math:`\mathrm{diag}(p) - p p^\top` for classes,
    :math:`\mathrm{diag}(p(1-p))` for binary values, :math:`\sigma^{-2} I` for real ones. The latents are
    neutral. Nothing is trained.

    Args:
        model: a trained model.
        data: its training data, pairs ``(x, y)`` or ``(x, y, weight)``, without augmentation.
        prior_precision: :math:`\delta` of the prior :math:`\mathcal N(0, \delta^{-1} I)`; None maximizes
            the evidence :math:`\log p(y|\hat\theta) - \frac\delta2\lVert\hat\theta\rVert^2 + \frac P2
            \log\delta - \frac12\log\det(G + \delta I)`.
        layer: name of the linear layer that computes the output; None for the last ``nn.Linear``.
        batch_size: examples at once, where the data do not come in batches.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The posterior, which predicts.

    Raises:
        ConversionError: if the layer does not compute the network's output, or has too many parameters.
        OptionError: if there is no such layer, the likelihood's curvature is not known, or
            ``prior_precision`` is not positive.
        DataError: if there are no data or no ``y``, an example lacks some of its values, or the
            evidence has no maximum.
        StatisticsError: if population statistics are missing or stale.

    Source: MacKay, "The Evidence Framework Applied to Classification Networks" (1992); Daxberger et
    al., "Laplace Redux" (NeurIPS 2021), last layer, full generalized Gauss-Newton matrix.
    """
    if prior_precision is not None and not 0 < prior_precision < math.inf:
        raise OptionError(f"fit_laplace: prior_precision must be positive, got {prior_precision}.")
    name = _last_linear(model) if layer is None else layer
    mean = _weights(_linear(model, name))
    outputs, width = mean.shape
    if outputs * width > _MOST:
        raise ConversionError(
            f"fit_laplace: {name!r} has {outputs * width} parameters; with more than {_MOST} their "
            "covariance does not fit in memory."
        )
    curvature = mean.new_zeros(outputs, width, outputs, width)
    log_p = 0.0
    with progress_bar("Laplace", batches_of(data, None, batch_size), show=progress) as bar:
        for features, output, y, weight in _evaluate(model, name, data, batch_size):
            if y is None:
                raise DataError("fit_laplace: needs pairs (x, y), got x alone.")
            count = example_counts(model.likelihood, y, weight, features, "fit_laplace")
            log_p += float((model.likelihood.log_prob(output, y) * count).sum())
            hessian = model.likelihood.curvature(output.double())
            hessian = hessian * count[:, None, None]
            for k in range(outputs):
                for m in range(k + 1):
                    block = (features * hessian[:, k, m, None]).T @ features
                    curvature[k, :, m] += block
                    if m < k:
                        curvature[m, :, k] += block
            bar.advance()
    eigenvalues, vectors = torch.linalg.eigh(curvature.reshape(mean.numel(), mean.numel()))
    eigenvalues = eigenvalues.clamp(min=0)
    if prior_precision is None:
        norm = float(mean.square().sum())

        def loss(delta: float) -> float:
            log_det = float((eigenvalues + delta).log().sum())
            return (delta * norm - mean.numel() * math.log(delta) + log_det) / 2 - log_p

        prior_precision = minimize_positive(
            loss, 1e-4, 1e6, "fit_laplace, prior_precision", "Set prior_precision yourself."
        )
    root = vectors * (eigenvalues + prior_precision).rsqrt()
    return LastLayerLaplace(model, name, mean, root, prior_precision)


def _evaluate(
    model: NormalizationModel, layer: str, data: Data, batch_size: Count
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Yield features with a one, (batch, feature) in float64, outputs, ``y`` and weights, by batch."""
    network = model.network
    linear = _linear(model, layer)
    network.check_statistics()
    seen: list[Tensor] = []
    results: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        seen.append(arguments[0])
        results.append(result)

    empty = True
    for batch in as_batches(data, batch_size):
        x, y, weight = split(batch).to(network)
        handle = linear.register_forward_hook(keep)
        try:
            with evaluation_mode(model):
                output = network(x)
        finally:
            handle.remove()
        if len(seen) != 1 or output.ndim != 2 or not torch.equal(output, results[0]):
            raise ConversionError(
                f"fit_laplace: {layer!r} is not the layer that computes the network's output of shape "
                f"{tuple(output.shape)}. Name it, layer=..., an nn.Linear whose result is the output."
            )
        features = seen.pop().double()
        results.clear()
        if linear.bias is not None:
            features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        empty = False
        yield features, output, y, weight
    if empty:
        raise DataError("data: there is no batch.")


def _last_linear(model: NormalizationModel) -> str:
    network = model.network.network
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not names:
        raise OptionError(f"fit_laplace: {type(network).__name__} has no nn.Linear layer.")
    return str(names[-1])


def _linear(model: NormalizationModel, name: str) -> nn.Linear:
    modules = dict(model.network.network.named_modules())
    module = modules.get(name)
    if not isinstance(module, nn.Linear):
        known = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
        raise OptionError(f"fit_laplace: there is no nn.Linear named {name!r}; there are {known}.")
    return module


@torch.no_grad()
def _weights(linear: nn.Linear) -> Tensor:
    """Weights with the bias in the last column, a copy in float64."""
    weight = linear.weight.double()
    return weight.clone() if linear.bias is None else torch.cat([weight, linear.bias[:, None]], 1)
