"""How often examples count."""

from __future__ import annotations

from torch import Tensor

from pyronorm.errors import DataError
from pyronorm.likelihoods import Likelihood

__all__ = ["example_counts"]


def example_counts(
    likelihood: Likelihood, y: Tensor, weight: Tensor | None, like: Tensor, where: str
) -> Tensor:
    """How often each example counts, as in the model's objective; 0 where its data are missing.

    Args:
        likelihood: says which data are missing, and what classes weigh.
        y: targets, examples on axis 0.
        weight: of each example, shape ``(batch,)``; None for once.
        like: gives the precision.
        where: the function's name, for messages.

    Returns:
        Shape ``(batch,)``.

    Raises:
        DataError: if an example has only some of its values, or values with weights of their own.
    """
    present, observed = likelihood.present(y), likelihood.observed(y)
    if observed is not None and not bool((observed.reshape(len(y), -1).all(1) == present).all()):
        raise DataError(
            f"{where}: an example has only some of its values. Leave out its other values too, by "
            "setting all to missing."
        )
    count = present.to(like.dtype)
    if weight is not None:
        count = count * weight
    values = likelihood.weights(y)
    if values is not None:
        if values.shape != count.shape:
            raise DataError(f"{where}: values of one example have weights of their own.")
        count = count * values
    return count
