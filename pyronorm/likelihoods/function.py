"""A likelihood made of a function."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from pyronorm.checks import Natural, checked
from pyronorm.errors import OptionError, ShapeError
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example

__all__ = ["Function"]


class Function(Likelihood):
    """What :meth:`Likelihood.of` makes of a function.

    Args:
        function: gives the distribution of each value for an output ``(*samples, batch, *out)``, of
            batch shape ``(*samples, batch, ...)``.

    Shape:
        - y: ``(batch, ...)``, what the function's distribution is of

    Raises:
        OptionError: if it is no function.
    """

    @checked
    def __init__(self, function: Callable[[Tensor], Distribution]) -> None:
        super().__init__()
        if isinstance(function, type):
            raise OptionError(
                "Likelihood.of: expected a function from the network's output to a distribution, got "
                f"{function!r}."
            )
        self.function = function

    def distribution(self, output: Tensor, num_sample_dims: Natural = 0) -> TorchDistributionMixin:
        """The function's distribution, with all axes after the batch as event dimensions."""
        check_axes("Likelihood.of", output, num_sample_dims, at_least=0)
        distribution = self.function(output)
        if not isinstance(distribution, TorchDistributionMixin):
            raise OptionError(
                "Likelihood.of: the function must return a distribution of pyro.distributions, got "
                f"{type(distribution).__name__}."
            )
        front = num_sample_dims + 1
        if distribution.batch_shape[:front] != output.shape[:front]:
            raise ShapeError(
                f"Likelihood.of: for an output of shape {tuple(output.shape)} the distribution must "
                f"have a batch shape that begins with {tuple(output.shape[:front])}, got "
                f"{tuple(distribution.batch_shape)}. Count axes from the last: outputs come with and "
                "without sample axes in front."
            )
        return per_example(distribution, num_sample_dims)
