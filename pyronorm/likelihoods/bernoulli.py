"""Yes or no."""

from __future__ import annotations

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyronorm.errors import DataError
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example
from pyronorm.likelihoods.later import require

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    r"""Independent binary values: :math:`p(y = 1) = \mathrm{sigmoid}(f)`.

    Shape:
        - output: logits ``(batch, *out)``; ``out`` may be empty (one value per example), several
          labels, or pixels
        - y: 0 or 1, ``(batch, *out)``; NaN for a missing value. In training also probabilities
          (floating point), as of mixup: :math:`y \log p + (1 - y) \log(1 - p)`
        - predictive mean (the probability of 1), entropy and mutual information: ``(batch, *out)``
    """

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Bernoulli with all axes after the batch as event dimensions."""
        check_axes("Bernoulli", output, num_sample_dims, at_least=0)
        return per_example(dist.Bernoulli(logits=output, validate_args=False), num_sample_dims)

    def check_training(
        self, y: Tensor, output: Tensor, num_sample_dims: int = 0, *, values: bool = True
    ) -> None:
        """As :meth:`check_data`, but values between 0 and 1 are allowed."""
        soft = y.is_floating_point()
        self.check_data(y, output, num_sample_dims, values=values and not soft)
        if soft and values:
            require(
                (((y >= 0) & (y <= 1)) | y.isnan()).all(),
                lambda: DataError(
                    f"Bernoulli: y must be between 0 and 1, or NaN where it is missing, got "
                    f"{float(y.nan_to_num(0.5).min()):g} to {float(y.nan_to_num(0.5).max()):g}."
                ),
            )
