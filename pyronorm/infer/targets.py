"""Batches that are dictionaries or objects, with the target among their entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from pyronorm.checks import checked
from pyronorm.errors import DataError

__all__ = ["loader_of", "with_target"]


class with_target(Iterable[Any]):  # noqa: N801 - read like a function
    """Batches that are dictionaries or objects, with one of their entries as the target.

    ``pn.fit(model, guide, pn.with_target(loader, "labels"))`` makes pairs ``(x, y)`` of batches
    ``{"input_ids": ..., "attention_mask": ..., "labels": ...}``, ``x`` without the labels; and
    ``pn.with_target(loader, "y")`` pairs ``(batch, batch.y)`` of graphs, with the batch as it is.

    Args:
        batches: a loader or another iterable of batches that can be iterated again.
        key: the target's key, or the attribute of an object.

    Raises:
        DataError: if a batch is a tensor, tuple or list, or has no such entry.
    """

    @checked
    def __init__(self, batches: Iterable[Any], key: str) -> None:
        self.batches, self.key = batches, key

    def __len__(self) -> int:
        """Number of batches, where that is known."""
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """Iterate over pairs."""
        for batch in self.batches:
            if isinstance(batch, Mapping) and self.key in batch:
                yield {k: v for k, v in batch.items() if k != self.key}, batch[self.key]
                continue
            structure = isinstance(batch, (Mapping, Tensor, tuple, list))
            if structure or not isinstance(getattr(batch, self.key, None), Tensor):
                has = f"keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
                raise DataError(
                    f"with_target: expected batches with the key or attribute {self.key!r}, got {has}."
                )
            yield batch, getattr(batch, self.key)


def loader_of(batches: Any) -> DataLoader[Any] | None:
    """The DataLoader that batches come from; None where they come from elsewhere."""
    while isinstance(batches, with_target):
        batches = batches.batches
    return batches if isinstance(batches, DataLoader) else None
