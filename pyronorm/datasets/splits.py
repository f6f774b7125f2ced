"""Random parts of a data set."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.errors import OptionError
from pyronorm.randomness import Seed, seed_value

__all__ = ["choose", "choose_stratified"]


def choose_stratified(
    y: Int[Tensor, " example"], num: int, seed: Seed
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " rest"]]:
    """Choose ``num`` examples at random, each class in its share of all examples.

    A class of ``c`` among ``N`` examples gives ``num * c / N`` of them, rounded by the method of
    largest remainders (a tie goes to the lower class). Both parts keep the order of the data.

    Args:
        y: classes.
        num: how many.
        seed: seeds the choice, by a generator of its own; see :func:`pyronorm.randomness.seed_value`.

    Returns:
        Indices of the chosen and of the others.

    Raises:
        OptionError: if there are fewer than ``num`` examples, or ``num`` is negative.
    """
    _check(num, len(y))
    generator = torch.Generator().manual_seed(seed_value(seed))
    # Integers throughout: whole shares and remainders of num * count / N are exact.
    counts = torch.bincount(y)
    quota = num * counts // max(len(y), 1)
    remainder = num * counts - quota * len(y)
    order = remainder.argsort(descending=True, stable=True)
    quota[order[: num - int(quota.sum())]] += 1
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for c in range(len(counts)):
        members = (y == c).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: int(quota[c])]]] = True
    return chosen.nonzero().squeeze(1), (~chosen).nonzero().squeeze(1)


def choose(
    y: Float[Tensor, " example"], num: int, seed: Seed
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " rest"]]:
    """Choose ``num`` examples at random; as :func:`choose_stratified`, without classes."""
    _check(num, len(y))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed_value(seed)))
    return order[:num].sort().values, order[num:].sort().values


def _check(num: int, available: int) -> None:
    if not 0 <= num <= available:
        raise OptionError(f"cannot choose {num} of {available} examples.")
