"""How many batches a pass over data has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyronorm.infer.data import Data, as_batches

__all__ = ["batches_of", "num_batches"]


def num_batches(batches: Iterable[Any]) -> int | None:
    """The number of batches, None where they do not say."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a loader of a stream has a method for it, which fails
        return None


def batches_of(data: Data, limit: int | None = None, batch_size: int = 256) -> int | None:
    """The number of batches that are used, None where the data do not say.

    Args:
        data: in any of the forms of :data:`pyronorm.infer.data.Data`.
        limit: how many at most; None for all.
        batch_size: examples per batch, where the data do not come in batches.
    """
    found = num_batches(as_batches(data, batch_size))
    return found if limit is None or found is None else min(limit, found)
