"""Real values with heavy tails."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.likelihoods.base import Likelihood, check_axes, per_example
from pyronorm.likelihoods.parameters import broadcast, positive

__all__ = ["StudentT"]


class StudentT(Likelihood):
    r"""Real values with outliers: :math:`(y - f)/s` has Student's t distribution.

    Args:
        df: degrees of freedom, above 2 so that the variance :math:`s^2 \nu/(\nu - 2)` exists.
        scale: :math:`s` > 0, in the units of ``y``: a number, or a tensor that broadcasts with
            ``out``.
        learned: whether both are parameters, :math:`\log(\nu - 2)` and :math:`\log s`, or given.

    Shape:
        - output: ``(batch, *out)``
        - y: ``(batch, *out)``; NaN for a missing value
        - predictive mean, variance, entropy and mutual information: ``(batch, *out)``

    Raises:
        OptionError: if ``df`` is not above 2 or ``scale`` not positive, or they are not finite.
    """

    log_scale: Tensor
    log_excess_df: Tensor

    @checked
    def __init__(
        self, df: float = 4.0, scale: float | Tensor = 1.0, *, learned: bool = False
    ) -> None:
        super().__init__()
        if not 2 < df < float("inf"):
            raise OptionError(f"StudentT: df must be above 2 and finite, got {df}.")
        for name, value in (
            ("log_scale", positive("StudentT", "scale", scale).log()),
            ("log_excess_df", torch.tensor(df - 2, dtype=torch.get_default_dtype()).log()),
        ):
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @property
    def scale(self) -> Tensor:
        """The scale, in the units of ``y``."""
        return self.log_scale.exp()

    @property
    def df(self) -> Tensor:
        """The degrees of freedom."""
        return 2 + self.log_excess_df.exp()

    def distribution(self, output: Tensor, num_sample_dims: int = 0) -> TorchDistributionMixin:
        """Student's t with all axes after the batch as event dimensions."""
        check_axes("StudentT", output, num_sample_dims, at_least=0)
        scale = broadcast("StudentT", "scale", self.scale, output, num_sample_dims)
        return per_example(
            dist.StudentT(self.df, output, scale, validate_args=False), num_sample_dims
        )
