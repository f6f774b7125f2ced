"""Classes that have an order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example

__all__ = ["Ordinal"]


class Ordinal(Likelihood):
    r"""Ordered classes with cumulative logits: :math:`P(y \le k) = \mathrm{sigmoid}(c_k - f)`.

    The network has one output per value; cutpoints :math:`c_0 < \dots < c_{K-2}` divide its scale
    into ``K`` classes. They are learned as the first and the logarithms of the gaps.

    Args:
        cutpoints: where they start, rising, shape ``(class - 1,)``; a number of classes for evenly
            spaced ones from -2 to 2.
        learned: whether they are parameters or given.
        ignore_index: the class that stands for a missing one; None if none is missing.

    Shape:
        - output: ``(batch, *out)``
        - y: integers from 0, ``(batch, *out)``
        - predictive mean: probabilities ``(batch, *out, class)``
        - entropy and mutual information: ``(batch, *out)``

    Raises:
        OptionError: if there are fewer than 2 classes, or cutpoints do not rise.

    Source: McCullagh, "Regression Models for Ordinal Data" (1980).
    """

    ordered = True

    first: Tensor
    log_gaps: Tensor

    @checked
    def __init__(
        self,
        cutpoints: int | Tensor,
        *,
        learned: bool = True,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(cutpoints, int):
            if cutpoints < 2:
                raise OptionError(f"Ordinal: needs at least 2 classes, got {cutpoints}.")
            cutpoints = torch.linspace(-2, 2, cutpoints - 1) if cutpoints > 2 else torch.zeros(1)
        points = cutpoints.detach().to(torch.get_default_dtype())
        rising = points.ndim == 1 and len(points) > 0 and bool(points.isfinite().all())
        if not rising or not bool((points.diff() > 0).all()):
            raise OptionError(
                f"Ordinal: cutpoints must be finite and rise, of shape (class - 1,), got {cutpoints}."
            )
        self.ignore_index = ignore_index
        for name, value in (("first", points[:1].clone()), ("log_gaps", points.diff().log())):
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @property
    def cutpoints(self) -> Tensor:
        """The cutpoints, shape ``(class - 1,)``."""
        return torch.cat([self.first, self.first + self.log_gaps.exp().cumsum(0)])

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Categorical with all axes after the batch as event dimensions."""
        check_axes("Ordinal", output, num_sample_dims, at_least=0)
        logit = self.cutpoints - output[..., None]  # of P(y <= k)
        # log(sigmoid(a) - sigmoid(b)) without the difference of two numbers near 1, or near 0
        gap = logit.diff(dim=-1)
        middle = F.logsigmoid(logit[..., 1:]) + F.logsigmoid(-logit[..., :-1])
        middle = middle + torch.log(-torch.expm1(-gap))
        log_p = torch.cat(
            [F.logsigmoid(logit[..., :1]), middle, F.logsigmoid(-logit[..., -1:])], -1
        )
        return per_example(dist.Categorical(logits=log_p, validate_args=False), num_sample_dims)
