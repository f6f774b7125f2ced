"""Batches that are dictionaries, with the target among their entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pyronorm.errors import DataError

__all__ = ["with_target"]


class with_target(Iterable[Any]):  # noqa: N801 - read like a function
    """Batches that are dictionaries, with one of their entries as the target.

    ``pn.fit(model, guide, pn.with_target(loader, "labels"))`` makes pairs ``(x, y)`` of batches
    ``{"input_ids": ..., "attention_mask": ..., "labels": ...}``, ``x`` without the labels.

    Args:
        batches: a loader or another iterable of dictionaries that can be iterated again.
        key: the target's key.

    Raises:
        DataError: if a batch is no dictionary, or has no such key.
    """

    def __init__(self, batches: Iterable[Any], key: str) -> None:
        self.batches, self.key = batches, key

    def __len__(self) -> int:
        """Number of batches, where that is known."""
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Iterate over pairs."""
        for batch in self.batches:
            if not isinstance(batch, Mapping) or self.key not in batch:
                has = f"keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
                raise DataError(
                    f"with_target: expected batches with the key {self.key!r}, got {has}."
                )
            yield {k: v for k, v in batch.items() if k != self.key}, batch[self.key]
