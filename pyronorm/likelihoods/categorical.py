"""Classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example
from pyronorm.likelihoods.missing import Weighted
from pyronorm.likelihoods.soft import SoftClasses, check_soft

__all__ = ["Categorical"]


class Categorical(Likelihood):
    r"""A class per example, or per position: :math:`p(y = k) = \mathrm{softmax}(f)_k`.

    Args:
        ignore_index: the class that stands for a missing one, as for
            :func:`torch.nn.functional.cross_entropy`; None if none is missing.
        weight: how often an example of each class counts in the objective of training, shape
            ``(class,)``; None for once. Unlike torch's cross entropy the sum is not divided by that
            of the weights: it is the log likelihood of data in which classes are repeated. Metrics
            and exports count every example once.

    Raises:
        OptionError: if ``weight`` is negative or not finite.

    Shape:
        - output: logits ``(batch, class, *spatial)``, as for
          :func:`torch.nn.functional.cross_entropy`
        - y: integers ``(batch, *spatial)``; in training also soft labels, as of mixup: floating point
          probabilities ``(batch, class, *spatial)``, with :math:`\sum_k y_k \log p_k` for
          :math:`\log p_y`
        - predictive mean: probabilities ``(batch, *spatial, class)``
        - entropy and mutual information: ``(batch, *spatial)``
    """

    weight: Tensor | None

    @checked
    def __init__(self, *, ignore_index: int | None = None, weight: Tensor | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        if weight is not None:
            weight = weight.detach().to(torch.get_default_dtype()).clone()
            if (
                weight.ndim != 1
                or not len(weight)
                or not bool(((weight >= 0) & weight.isfinite()).all())
            ):
                raise OptionError(
                    "Categorical: weight must be finite and not negative, of shape (class,), got "
                    f"{weight}."
                )
        self.register_buffer("weight", weight)

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Categorical with one event dimension per spatial axis."""
        check_axes("Categorical", output, num_sample_dims, at_least=1)
        logits = output.movedim(num_sample_dims + 1, -1)
        if self.weight is not None and logits.shape[-1] != len(self.weight):
            raise ShapeError(
                f"Categorical: weight is of {len(self.weight)} classes, but an output of shape "
                f"{tuple(output.shape)} has {logits.shape[-1]}."
            )
        return per_example(_Classes(logits=logits, validate_args=False), num_sample_dims)

    def objective(
        self, output: Tensor, y: Tensor, num_sample_dims: int = 0, weight: Tensor | None = None
    ) -> tuple[TorchDistributionMixin, Tensor]:
        """As in :class:`Likelihood`; of soft labels the expected log probability."""
        if not _is_soft(y, output, num_sample_dims):
            return super().objective(output, y, num_sample_dims, weight)
        log_p = output.log_softmax(num_sample_dims + 1)
        soft = SoftClasses(log_p, num_sample_dims, self.weight)
        return (soft if weight is None else Weighted(soft, weight)), y

    def total(
        self, output: Tensor, y: Tensor, num_sample_dims: int = 0, weight: Tensor | None = None
    ) -> Tensor:
        """As in :class:`Likelihood`; by torch's cross entropy, which is the same in fewer kernels."""
        if num_sample_dims or weight is not None or _is_soft(y, output, num_sample_dims):
            return super().total(output, y, num_sample_dims, weight)
        ignored = _NO_CLASS if self.ignore_index is None else self.ignore_index
        of_classes = None if self.weight is None else self.weight.to(output.dtype)
        return -F.cross_entropy(output, y.long(), of_classes, ignore_index=ignored, reduction="sum")

    def check_training(
        self, y: Tensor, output: Tensor, num_sample_dims: int = 0, *, values: bool = True
    ) -> None:
        """As :meth:`check_data`, or for soft labels that they are probabilities."""
        if not _is_soft(y, output, num_sample_dims):
            self.check_data(y, output, num_sample_dims, values=values)
            return
        self.distribution(output, num_sample_dims)
        expected = output.shape[num_sample_dims:]
        if y.shape != expected:
            raise ShapeError(
                f"Categorical: soft labels for an output of shape {tuple(output.shape)} have the shape "
                f"{tuple(expected)}, got {tuple(y.shape)}."
            )
        if values:
            check_soft(y, "Categorical")

    def check_data(
        self, y: Tensor, output: Tensor, num_sample_dims: int = 0, *, values: bool = True
    ) -> None:
        """As in :class:`Likelihood`; soft labels are for training alone."""
        if y.is_floating_point() and y.shape == output.shape[num_sample_dims:]:
            raise DataError(
                "Categorical: soft labels are for training. Metrics and log likelihoods need classes, "
                "such as y.argmax(1)."
            )
        super().check_data(y, output, num_sample_dims, values=values)

    def weights(self, y: Tensor) -> Tensor | None:
        """The weights of the classes of ``y``."""
        if self.weight is None:
            return None
        observed = self.observed(y)
        return self.weight[y if observed is None else torch.where(observed, y, 0)]


_NO_CLASS = torch.iinfo(torch.int64).min  # torch's own, -100, would pass for a missing one


class _Classes(dist.Categorical):
    """Pyro's, without a question that torch.compile cannot follow: are the data an enumeration?"""

    log_prob = torch.distributions.Categorical.log_prob


def _is_soft(y: Tensor, output: Tensor, num_sample_dims: int) -> bool:
    return y.is_floating_point() and y.ndim == output.ndim - num_sample_dims
