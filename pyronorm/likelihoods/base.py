"""What a likelihood is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyronorm.errors import DataError, ShapeError

__all__ = ["Likelihood", "Summary"]


@dataclass(frozen=True)
class Summary:
    r"""The posterior predictive distribution of each example, averaged over draws.

    Attributes:
        mean: predictive mean; for Categorical and Bernoulli the probabilities.
        variance: predictive variance of each component of ``mean``'s data.
        entropy: entropy of the predictive distribution per output position, in nats.
        mutual_information: of output and latents (epistemic uncertainty), per output position, in
            nats: entropy minus the mean entropy of the single draws.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor
    mutual_information: Tensor


class Likelihood(nn.Module, ABC):
    """Maps outputs of a network to distributions of the data, one per example.

    Outputs have the shape ``(*samples, batch, *out)``. What ``out`` is, the subclass says; whatever
    lies beyond a single value per example (pixels, several targets) are event dimensions, so that
    each example has one log likelihood.
    """

    takes_integers: ClassVar[bool] = False
    """Whether the data are integers rather than floating point numbers."""

    @abstractmethod
    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """The distribution of ``y``.

        Args:
            output: the network's output, shape ``(*samples, batch, *out)``.
            num_sample_dims: the number of axes in ``samples``.

        Returns:
            A distribution with batch shape ``(*samples, batch)``.

        Raises:
            ShapeError: if ``output`` does not have the axes this likelihood needs.
        """

    @abstractmethod
    def expected(self, output: Tensor, num_sample_dims: int = 0) -> Tensor:
        """The mean of ``y`` given the latents (probabilities, for classes), without noise.

        Args:
            output: the network's output, shape ``(*samples, batch, *out)``.
            num_sample_dims: the number of axes in ``samples``.
        """

    @abstractmethod
    def summarize(self, output: Tensor) -> Summary:
        """Summarize the mixture over draws.

        Args:
            output: outputs of several draws, shape ``(sample, batch, *out)``.
        """

    def check_data(
        self, y: Tensor, output: Tensor, num_sample_dims: int = 0, *, values: bool = True
    ) -> None:
        """Refuse data that the output cannot be a distribution of.

        Args:
            y: the data, shape ``(batch, *event)``.
            output: the network's output, shape ``(*samples, batch, *out)``.
            num_sample_dims: the number of axes in ``samples``.
            values: also look at the values, which waits for the device.

        Raises:
            ShapeError: if shapes disagree; nothing is broadcast.
            DataError: if values are impossible.
        """
        where = type(self).__name__
        distribution = self.distribution(output, num_sample_dims)
        expected = output.shape[num_sample_dims : num_sample_dims + 1] + distribution.event_shape
        if y.shape != expected:
            raise ShapeError(
                f"{where}: the network's output of shape {tuple(output.shape)} describes y of shape "
                f"{tuple(expected)}, got y of shape {tuple(y.shape)}."
            )
        if y.is_floating_point() == self.takes_integers:
            wanted = "integers" if self.takes_integers else "floating point numbers"
            raise DataError(f"{where}: y must be {wanted}, got {y.dtype}.")
        if values and not bool(distribution.support.check(y).all() & y.isfinite().all()):
            finite = y[y.isfinite()]
            span = f"{finite.min():g} to {finite.max():g}" if finite.numel() else "none"
            raise DataError(
                f"{where}: y has values outside of the support, {_support(distribution)}, or not "
                f"finite. The finite ones range from {span}."
            )


def check_axes(where: str, output: Tensor, num_sample_dims: int, at_least: int) -> None:
    """Refuse an output with fewer axes per example than the likelihood needs."""
    if output.ndim - num_sample_dims - 1 < at_least:
        raise ShapeError(
            f"{where}: expected an output of shape (batch, {'class, ' if at_least else ''}...), got "
            f"{tuple(output.shape)} with {num_sample_dims} sample axes in front."
        )


def _support(distribution: TorchDistributionMixin) -> str:
    constraint = distribution.support
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return str(constraint)
