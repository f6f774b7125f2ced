"""Intervals from leaving out one example at a time, by influence functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.func import functional_call, grad, vmap

from pyronorm.checks import Count, Positive, Probability, checked
from pyronorm.display import displayed
from pyronorm.errors import ConversionError, DataError, OptionError, ShapeError
from pyronorm.infer.data import Data, gather, inputs
from pyronorm.infer.modes import evaluation_mode
from pyronorm.likelihoods import Intervals
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.freshness import batch_layers

__all__ = ["Jackknife", "fit_jackknife"]

_MOST = 10_000  # parameters: their Hessian in float64 takes 0.8 gigabytes

_TOGETHER = 64  # networks at once


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Jackknife:
    r"""A network, and how its weights would change without each of its training examples.

    Attributes:
        model: the model.
        steps: :math:`\hat\theta_{-i} - \hat\theta`, shape ``(parameter, example)``.
        residuals: :math:`y_i - f_{-i}(x_i)`, shape ``(example,)``.
    """

    model: NormalizationModel
    steps: Float[Tensor, "parameter example"]
    residuals: Float[Tensor, " example"]

    @checked
    def intervals(
        self, data: Data, coverage: Probability = 0.9, *, batch_size: Count = 256
    ) -> Intervals:
        r"""Intervals for new examples, wider where leaving out an example changes the network more.

        From the :math:`\lfloor\alpha(n+1)\rfloor`-th smallest of :math:`f_{-i}(x) - |r_i|` to the
        :math:`\lceil(1-\alpha)(n+1)\rceil`-th smallest of :math:`f_{-i}(x) + |r_i|`,
        :math:`\alpha` = 1 - ``coverage``, with residuals :math:`r_i` and the network with the weights
        :math:`\hat\theta_{-i}`, one pass for each training example. With exact leave-one-out and
        exchangeable examples they hold a new target with probability :math:`1 - 2\alpha` at least,
        whatever the network and the data, and in most cases about :math:`1 - \alpha`; the steps are
        approximate, so there is no guarantee here.

        Args:
            data: inputs ``x``, alone or in pairs ``(x, y)`` of which ``y`` is not used.
            coverage: :math:`1 - \alpha`.
            batch_size: examples at once, where the data do not come in batches.

        Raises:
            OptionError: if ``coverage`` is not between 0 and 1, or too close to 1 for so few examples.
            DataError: if there are no data.

        Source: Barber, Candès, Ramdas & Tibshirani, "Predictive Inference with the Jackknife+" (2021),
        theorem 1; Alaa & van der Schaar (ICML 2020).
        """
        if not 0 < coverage < 1:
            raise OptionError(f"Jackknife: coverage must be between 0 and 1, got {coverage}.")
        size = len(self.residuals)
        rank = math.ceil(round(coverage * (size + 1), 9))  # 55.00000000000001 means 55
        if rank > size:
            raise OptionError(
                f"Jackknife: a coverage of {coverage} needs at least "
                f"{math.ceil(round(coverage / (1 - coverage), 9))} training examples, got {size}."
            )
        network = self.model.network
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for x in inputs(data, network, batch_size):
            with torch.no_grad(), evaluation_mode(self.model):
                mean = network(x)
                left_out = _left_out(self.model, self.steps, x)
            upper = (left_out + self.residuals.abs()).kthvalue(rank, 1).values
            lower = -(self.residuals.abs() - left_out).kthvalue(rank, 1).values
            parts.append((mean, lower.view_as(mean).to(mean), upper.view_as(mean).to(mean)))
        if not parts:
            raise DataError("data: there is no batch.")
        return Intervals(*(torch.cat(part) for part in zip(*parts, strict=True)))


@checked
def fit_jackknife(
    model: NormalizationModel, data: Data, *, damping: Positive = 1.0, batch_size: Count = 256
) -> Jackknife:
    r"""Leave out each training example in turn, without training again.

    The network is taken for a minimum of :math:`\frac12\sum_i (y_i - f(x_i))^2 +
    \frac\lambda2\lVert\theta\rVert^2`. With gradients :math:`g_i = \nabla f(x_i)`, the Gauss-Newton
    matrix :math:`H = \sum_i g_i g_i^\top + \lambda I` and the leverage
    :math:`h_i = g_i^\top H^{-1} g_i`, one Newton step on the loss without example ``i`` gives

    .. math::
        \hat\theta_{-i} - \hat\theta = -\frac{y_i - f(x_i)}{1 - h_i} H^{-1} g_i, \qquad
        r_i = y_i - f_{-i}(x_i),

    with :math:`f_{-i}` the network at :math:`\hat\theta_{-i}`. For a network that is linear in its
    parameters this is exact, and :math:`r_i = (y_i - f(x_i))/(1 - h_i)`.

    Args:
        model: a trained model with one real target and Gaussian noise of one width, as of
            :class:`~pyronorm.likelihoods.Normal`, latents neutral; without batch normalizers.
        data: its training data, pairs ``(x, y)``.
        damping: :math:`\lambda` > 0. Of a Gaussian prior of variance :math:`s^2` it is
            :math:`\sigma^2/s^2` with the noise :math:`\sigma`; of the weight decay ``w`` of
            ``torch.optim.Adam`` in :func:`pyronorm.fit` it is :math:`N w \sigma^2`. Coverage depends on
            it where the network was not trained with it.
        batch_size: examples at once.

    Returns:
        What gives intervals.

    Raises:
        OptionError: if the likelihood is another one, or ``damping`` is not positive.
        ShapeError: if there are several targets, or ``y`` does not fit.
        ConversionError: if the network has batch normalizers, or more than 10,000 parameters to train.
        DataError: if there are no ``y``, or they are not finite.

    Source: Alaa & van der Schaar, "Discriminative Jackknife: Quantifying Uncertainty in Deep Learning
    via Higher-Order Influence Functions" (ICML 2020).

    Departs from the paper: the Gauss-Newton matrix instead of the Hessian, which is not positive where
    training stopped early; for the linearized network the series of influence functions of all orders
    then sums to the closed form above. Quantiles are those of the jackknife+ at
    :math:`\alpha`, while the authors' program takes :math:`\alpha/2`, which is wider.
    """
    if not 0 < damping < math.inf:
        raise OptionError(f"fit_jackknife: damping must be positive, got {damping}.")
    network = model.network
    for layer in batch_layers(network):
        raise ConversionError(
            f"fit_jackknife: {layer.name} has batch statistics: what leaving out an example does to "
            "them is not followed. Use another normalizer, or a plain network."
        )
    count = sum(p.numel() for p in _trained(model).values())
    if not 1 <= count <= _MOST:
        raise ConversionError(
            f"fit_jackknife: the network has {count} trainable parameters, it must have 1 to {_MOST} "
            "(their Hessian is computed)."
        )
    batch = gather(data, batch_size).to(network)
    x, (y, weight) = batch.x, batch.targets("fit_jackknife")
    if weight is not None:
        raise DataError(
            "fit_jackknife: leaves one example out, so examples with weights have no place in it. Give "
            "pairs (x, y), with an example as often as it counts."
        )
    with evaluation_mode(model):
        parts = [_gradients(model, some) for some in x.split(batch_size)]
    mean, gradients = (torch.cat(part) for part in zip(*parts, strict=True))
    _refuse_other_losses(model, mean)
    model.likelihood.check_data(y, mean)
    present = model.likelihood.present(y)
    y, mean, gradients = y[present], mean[present], gradients[present]
    hessian = gradients.T @ gradients
    hessian.diagonal().add_(damping)
    solved = torch.cholesky_solve(gradients.T, torch.linalg.cholesky(hessian))
    leverage = (gradients.T * solved).sum(0)
    steps = -solved * ((y - mean).reshape(-1).double() / (1 - leverage))
    with torch.no_grad(), evaluation_mode(model):
        own = torch.func.vmap(_evaluated(model), (0, 0))(
            _weights(model, steps), x[present][:, None]
        )
    return Jackknife(model, steps, y.reshape(-1).double() - own.reshape(-1).double())


def _refuse_other_losses(model: NormalizationModel, output: Tensor) -> None:
    """Refuse a likelihood that is not the squared error around the network's output."""
    distribution: Any = model.likelihood.distribution(output)
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    normal = isinstance(distribution, Normal)
    if (
        not normal
        or not torch.equal(distribution.loc, output)
        or (distribution.scale != distribution.scale[:1]).any()
    ):
        raise OptionError(
            "fit_jackknife: needs a real target with Gaussian noise of one width around the network's "
            f"output, got {type(model.likelihood).__name__}."
        )


def _trained(model: NormalizationModel) -> dict[str, Tensor]:
    named = model.network.named_parameters()
    return {name: p.detach() for name, p in named if p.requires_grad}


def _weights(model: NormalizationModel, steps: Tensor) -> dict[str, Tensor]:
    """The parameters after each of the steps, on axis 0."""
    parameters = _trained(model)
    parts = steps.T.split([p.numel() for p in parameters.values()], 1)
    return {
        name: (p.double() + part.reshape(-1, *p.shape)).to(p)
        for (name, p), part in zip(parameters.items(), parts, strict=True)
    }


def _evaluated(model: NormalizationModel) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def evaluate(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(model.network, parameters, (x,))
        return result.reshape(-1)

    return evaluate


def _left_out(model: NormalizationModel, steps: Tensor, x: Tensor) -> Tensor:
    """What the network predicts without each of the training examples, (batch, example)."""
    evaluate = torch.func.vmap(_evaluated(model), (0, None))
    parts = [evaluate(_weights(model, some), x) for some in steps.split(_TOGETHER, 1)]
    return torch.cat(parts).T.double()


def _gradients(model: NormalizationModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and their gradients in the trained parameters, (batch, parameter) in float64."""
    network = model.network
    parameters = _trained(model)
    with torch.no_grad():
        output: Tensor = network(x)
    if output.shape not in ((len(x),), (len(x), 1)):
        raise ShapeError(
            f"jackknife: one target per example, (batch,) or (batch, 1), got an output of shape "
            f"{tuple(output.shape)}."
        )

    def evaluate(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        result: Tensor = functional_call(network, parameters, (example[None],))
        return result.reshape(())

    gradients = vmap(grad(evaluate), (None, 0))(parameters, x)
    return output, torch.cat([g.flatten(1) for g in gradients.values()], 1).double()
