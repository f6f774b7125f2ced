r"""The law of batch noise: how the statistics of a random batch scatter.

Let a batch of ``n`` independent values of a channel with mean :math:`\mu` and variance
:math:`\sigma^2` have the mean :math:`M` and the biased variance :math:`S^2` (divisor ``n``, as batch
normalization uses). In the coordinates of the library,
:math:`\text{shift} = (\mu - M)/\sigma` and :math:`\text{scale} = \sigma / S`. For Gaussian values

.. math::
    \text{shift} \sim \mathcal N(0, 1/n), \qquad
    1/\text{scale}^2 = S^2/\sigma^2 \sim \chi^2_{n-1}/n, \qquad \text{independent.}

Source: Cochran's theorem; for its use as the noise of batch normalization Shekhovtsov & Flach,
"Stochastic Normalizations as Bayesian Learning" (ACCV 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.errors import OptionError

__all__ = ["check_batch_size", "log_var_mean", "log_var_variance", "shift_variance"]


def check_batch_size(batch_size: float, where: str) -> float:
    """Return ``batch_size`` as a float, or refuse a size that has no variance.

    Args:
        batch_size: effective number of independent values; need not be whole.
        where: the name that the error message puts in front.

    Raises:
        OptionError: if ``batch_size`` is not a finite number above 1.
    """
    number = not isinstance(batch_size, (bool, str))
    try:
        size = float(batch_size) if number else 0.0
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several
        size = 0.0
    if not 1.0 < size < float("inf"):
        raise OptionError(
            f"{where}: batch_size must be a finite number above 1 (one value has no variance), "
            f"got {batch_size!r}."
        )
    return size


@checked
def shift_variance(batch_size: float, num_data: Count | None = None) -> float:
    r"""Variance of ``shift``: :math:`1/n`, or :math:`\frac{1}{n}\frac{N-n}{N-1}`.

    Args:
        batch_size: ``n``, values per batch.
        num_data: ``N``, if batches are drawn *without* replacement from that many values; None for
            independent values.

    Returns:
        The variance, exact for any distribution of the values.
    """
    n = check_batch_size(batch_size, "shift_variance")
    if num_data is None:
        return 1.0 / n
    if num_data < n:
        raise OptionError(
            f"shift_variance: num_data must be at least batch_size={batch_size:g}, got {num_data}."
        )
    return (num_data - n) / (num_data - 1) / n


@checked
def log_var_mean(batch_size: float | Tensor) -> Tensor:
    r"""Mean of :math:`\log(S^2/\sigma^2)`: :math:`\psi(\frac{n-1}{2}) + \log\frac{2}{n}`.

    Args:
        batch_size: ``n`` > 1, a number or a tensor of any shape.

    Returns:
        Tensor of the same shape, float64 for a number.

    Raises:
        OptionError: if a size is not finite and above 1 (not looked at on a GPU).
    """
    n = _as_tensor(batch_size, "log_var_mean")
    return torch.digamma((n - 1) / 2) + torch.log(2 / n)


@checked
def log_var_variance(batch_size: float | Tensor) -> Tensor:
    r"""Variance of :math:`\log(S^2/\sigma^2)`: :math:`\psi_1(\frac{n-1}{2})`.

    Args:
        batch_size: ``n`` > 1, a number or a tensor of any shape.

    Returns:
        Tensor of the same shape, float64 for a number.

    Raises:
        OptionError: if a size is not finite and above 1 (not looked at on a GPU).
    """
    n = _as_tensor(batch_size, "log_var_variance")
    return torch.polygamma(1, (n - 1) / 2)


def _as_tensor(batch_size: float | Tensor, where: str) -> Tensor:
    if isinstance(batch_size, Tensor):
        # What lies on a device is not looked at: that would wait for it.
        if batch_size.device.type == "cpu" and not bool(
            ((batch_size > 1) & batch_size.isfinite()).all()
        ):
            raise OptionError(
                f"{where}: batch_size must be finite and above 1 everywhere (one value has no "
                f"variance), got {batch_size.min().item():g} to {batch_size.max().item():g}."
            )
        return batch_size
    return torch.tensor(check_batch_size(batch_size, where), dtype=torch.float64)
