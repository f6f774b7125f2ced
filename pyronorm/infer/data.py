"""Data in the forms users have it: loaders, data sets, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pyronorm.errors import DataError, ShapeError
from pyronorm.latents import LatentNetwork

__all__ = ["Data", "as_batches", "evaluation_mode", "gather", "inputs", "kept_modes", "split"]

Data = Iterable[Any] | Dataset[Any] | Tensor
"""A DataLoader (or any iterable of batches that can be iterated again), a Dataset, a tensor ``x``, or
a pair of tensors ``(x, y)``. A batch is ``x`` or ``(x, y)``, examples on axis 0."""


def as_batches(
    data: Data, batch_size: int = 256, *, shuffle: bool = False, seed: int | None = None
) -> Iterable[Any]:
    """Return an iterable of batches.

    Args:
        data: in any of the forms of :data:`Data`.
        batch_size: examples per batch, where the data do not come in batches.
        shuffle: shuffle data that do not come in batches; a rest of one example is then left out.
        seed: seeds the order, apart from torch's own generator; None draws from that.

    Raises:
        DataError: if the data have no such form, or can be iterated only once.
        ShapeError: if ``x`` and ``y`` differ in length.
    """
    if isinstance(data, Tensor):
        data = _Tensors((data,))
    elif isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data):
        data = _Tensors(data)
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, Dataset):
        # A loader takes a number from its generator even if it does not shuffle.
        generator = None if shuffle and seed is None else torch.Generator()
        if generator is not None and seed is not None:
            generator.manual_seed(seed)
        rest = len(data) % batch_size  # type: ignore[arg-type]
        return DataLoader(
            data,
            batch_size=batch_size,
            shuffle=shuffle,
            generator=generator,
            drop_last=shuffle and rest == 1,  # one example has no batch statistics
            collate_fn=tuple if isinstance(data, _Tensors) else None,
        )
    if isinstance(data, Iterator):
        raise DataError(
            "data: an iterator is used up after one pass. Pass a DataLoader, a list of batches, a "
            "Dataset or tensors."
        )
    if isinstance(data, Iterable):
        return data
    raise DataError(
        "data: expected a DataLoader, an iterable of batches, a Dataset, a tensor or a pair of "
        f"tensors, got {type(data).__name__}."
    )


class _Tensors(Dataset[tuple[Tensor, ...]]):
    """Tensors that are indexed a batch at a time, not example by example."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) > 1:
            raise ShapeError(f"data: x and y must have one length, got {lengths}.")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, index: list[int]) -> list[Tensor]:
        return [tensor[index] for tensor in self.tensors]


def split(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Split a batch into ``x`` and ``y``, the latter None if there is none.

    Raises:
        DataError: if the batch is neither ``x`` nor ``(x, y)``.
    """
    if isinstance(batch, Tensor):
        return batch, None
    kinds: object = type(batch).__name__
    if isinstance(batch, (tuple, list)):
        if 1 <= len(batch) <= 2 and all(isinstance(part, Tensor) for part in batch):
            return batch[0], batch[1] if len(batch) == 2 else None
        kinds = [type(part).__name__ for part in batch]
    raise DataError(f"data: a batch must be a tensor x or a pair (x, y), got {kinds}.")


def inputs(
    data: Data, network: LatentNetwork, batch_size: int = 256, *, shuffle: bool = False
) -> Iterator[Tensor]:
    """Iterate over the inputs ``x`` of all batches, on the network's device."""
    for batch in as_batches(data, batch_size, shuffle=shuffle):
        yield network.prepare(split(batch)[0])


def gather(data: Data, batch_size: int = 256) -> tuple[Tensor, Tensor | None]:
    """Join all batches into one tensor each for ``x`` and ``y``.

    Raises:
        DataError: if the data are empty.
    """
    if isinstance(data, (Tensor, tuple)):
        data = [data]
    parts = [split(batch) for batch in as_batches(data, batch_size)]
    if not parts:
        raise DataError("data: there is no batch.")
    y = [y for _, y in parts if y is not None]
    return torch.cat([x for x, _ in parts]), torch.cat(y) if y else None


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in evaluation mode; each submodule gets its mode back after."""
    with kept_modes(module):
        module.eval()
        yield


@contextmanager
def kept_modes(module: nn.Module) -> Iterator[None]:
    """Context after which every submodule has the mode (training or evaluation) it had before."""
    before = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, training in before:  # a module before its parts, which may differ from it
            if type(m).train is not nn.Module.train:
                m.train(training)  # does more than to set a flag: adapters that merge weights
            m.training = training
