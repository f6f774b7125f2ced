"""Data in the forms users have it: loaders, data sets, tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import is_dataclass
from itertools import islice
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from pyronorm.arrays import Array, as_tensors
from pyronorm.checks import LATER, check_count
from pyronorm.devices import move
from pyronorm.errors import DataError, ShapeError
from pyronorm.infer.batch import MiniBatch, batch_length, joined, split
from pyronorm.infer.shares import Share, in_step
from pyronorm.infer.targets import loader_of, with_target
from pyronorm.inputs import (
    EXAMPLES_FIRST,
    all_finite,
    first_tensor,
    is_input,
    is_object,
    is_one_piece,
    map_tensors,
    tensors_of,
)
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers.freshness import batch_layers
from pyronorm.randomness import Seed, seed_value

__all__ = [
    "Data",
    "as_batches",
    "count_examples",
    "folded",
    "gather",
    "has_small_rest",
    "inputs",
    "least_examples",
]

Data = Annotated[Iterable[Any] | Dataset[Any] | Array, LATER]
"""A DataLoader (or any iterable of batches that can be iterated again), a Dataset, inputs ``x``, a pair
``(x, y)``, or ``(x, y, weight)``. A batch is one of the last three, examples on axis 0 of every tensor.
``y`` and ``weight`` (how often each example counts) are tensors; ``x`` is one, or in a pair a tuple for
``network(*x)``, a dictionary for ``network(**x)`` or a dataclass of tensors, or an object with a method
``to(device)``, such as a batch of graphs. Arrays of NumPy do for tensors. Batches that are dictionaries
or objects with the target among their entries: :func:`pyronorm.with_target`."""


def as_batches(
    data: Data,
    batch_size: int = 256,
    *,
    shuffle: bool = False,
    seed: Seed = None,
    least: int = 1,
) -> Iterable[Any]:
    """Return an iterable of batches.

    Args:
        data: in any of the forms of :data:`Data`.
        batch_size: examples per batch, where the data do not come in batches.
        shuffle: shuffle data that do not come in batches and have a length.
        seed: seeds the order, apart from torch's own generator; None draws from that.
        least: a rest of fewer examples joins the batch before it; see :func:`folded` for data that
            come in batches.

    Raises:
        DataError: if the data have no such form, or can be iterated only once.
        OptionError: if ``batch_size`` is below 1.
        ShapeError: if ``x`` and ``y`` differ in length.
    """
    check_count("data", "batch_size", batch_size)
    batch_size = operator.index(batch_size)  # torch's samplers take no integers of NumPy
    if isinstance(data, DataLoader):
        return data
    data = as_tensors(data)
    if not isinstance(data, Dataset):
        if _is_batch(data):
            return [data]
        if isinstance(data, (Tensor, Mapping)) or _is_record(data):
            data = _Tensors(split((data,)))
        elif isinstance(data, tuple) and _is_tensors(data):
            whole = split(data)
            weight = whole.weight
            if weight is not None and weight.device.type == "cpu" and not bool(weight.any()):
                raise DataError("data: all weights are 0: the examples count for nothing.")
            data = _Tensors(whole)
    # A loader takes a number from its generator even if it does not shuffle.
    generator = None if shuffle and seed is None else torch.Generator()
    if generator is not None and seed is not None:
        generator.manual_seed(seed_value(seed))
    if isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=batch_size, generator=generator)
    if isinstance(data, Dataset):
        if not hasattr(data, "__len__"):
            raise DataError(
                f"data: {type(data).__name__} is a Dataset without a length. Give it a __len__, or make "
                "it an IterableDataset."
            )
        if shuffle and not len(data):
            raise DataError("data: there are no examples.")
        order = RandomSampler(data, generator=generator) if shuffle else SequentialSampler(data)
        return DataLoader(
            data,
            batch_sampler=_Batches(order, batch_size, least=least),
            generator=generator,
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
        "data: expected a DataLoader, an iterable of batches, a Dataset, a tensor, or a tuple (x, y) or "
        f"(x, y, weight) of tensors, got {type(data).__name__}."
    )


class _Batches(BatchSampler):
    """Indices in batches; a rest of fewer than ``least`` joins the batch before it.

    Args:
        sampler: gives the indices, and how many there are.
        batch_size: indices per batch.
        least: the smallest rest.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, *, least: int = 1) -> None:
        super().__init__(sampler, batch_size, False)
        self.least = least

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        for size in self._sizes():
            yield list(islice(indices, size))

    def __len__(self) -> int:
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        full, rest = divmod(len(self.sampler), self.batch_size)  # type: ignore[arg-type]
        sizes = [self.batch_size] * full
        if rest and sizes and rest < self.least:
            sizes[-1] += rest
        elif rest:
            sizes.append(rest)
        return sizes


def folded(batches: Iterable[Any], least: int) -> Iterator[Any]:
    """Iterate over batches; one of fewer than ``least`` examples joins the batch before it.

    A loader's rest of one example has no batch statistics. Nothing happens where the first batch is as
    small, or nothing is small.

    Args:
        batches: batches.
        least: the fewest examples of a batch.
    """
    if not has_small_rest(batches, least):
        yield from batches
        return
    held: Any = None
    for batch in batches:
        if held is None:
            held = batch
        elif batch_length(batch) < least <= batch_length(held) and not is_one_piece(batch):
            held = joined([held, batch])
        else:
            yield held
            held = batch
    if held is not None:
        yield held


def has_small_rest(batches: Iterable[Any], least: int) -> bool:
    """Whether there may be a batch of fewer than ``least`` examples, apart from the first."""
    if least <= 1:
        return False
    loader = loader_of(batches)
    if loader is None:
        return True
    known = getattr(loader.batch_sampler, "least", None)  # one that folds the rest itself
    if known is not None:
        return bool(known < least)
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return not loader.drop_last
    rest = len(loader.sampler) % loader.batch_size  # type: ignore[arg-type]
    return not loader.drop_last and 0 < rest < least


def least_examples(network: nn.Module) -> int:
    """The fewest examples that batch statistics of the network need for certain; 1 without any."""
    return max((layer.normalizer.least_batch_size for layer in batch_layers(network)), default=1)


def count_examples(batches: Iterable[Any]) -> int | None:
    """The number of examples of a pass over data, None where they do not say."""
    if isinstance(batches, with_target):
        return count_examples(batches.batches)
    if isinstance(batches, Sequence):
        try:
            return sum(batch_length(split(batch)) for batch in batches)
        except DataError:  # no list of batches: it comes again when they are read
            return None
    loader = loader_of(batches)
    if loader is None or isinstance(loader.dataset, IterableDataset):
        return None
    sampler: Any = loader.sampler if loader.batch_size is not None else None
    if isinstance(loader.batch_sampler, _Batches):
        sampler = loader.batch_sampler.sampler
    return len(sampler) if isinstance(sampler, Sized) else None


class _Tensors(Dataset[tuple[Any, ...]]):
    """Tensors that are indexed a batch at a time, not example by example."""

    def __init__(self, tensors: MiniBatch) -> None:
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors_of(tensors).values()]
        if len(set(lengths)) > 1:
            raise ShapeError(
                f"data: x and y must have one length, got {lengths} on axis 0. {EXAMPLES_FIRST}"
            )
        self.tensors = tensors.arguments()
        self.length = lengths[0]

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, index: list[int]) -> list[Any]:
        place = torch.tensor(index)
        # Indexing by a list would wait for the device.
        return list(map_tensors(lambda tensor: tensor[move(place, tensor.device)], self.tensors))


def _is_record(data: Any) -> bool:
    return is_dataclass(data) and is_input(data)


def _is_tensors(data: tuple[Any, ...]) -> bool:
    """Whether a tuple is (x, ...) and not one of batches."""
    return bool(data) and is_input(data[0]) and all(isinstance(t, Tensor) for t in data[1:])


def _is_batch(data: Any) -> bool:
    """Whether data are one batch that is an object, or has one: it is not cut into smaller ones."""
    if isinstance(data, tuple) and not is_object(data):
        return is_one_piece(data) and _is_tensors(data)
    if isinstance(data, Mapping):
        return is_one_piece(data)
    graph = hasattr(data, "num_graphs") or hasattr(data, "num_nodes")
    known = graph or isinstance(data, PackedSequence) or not isinstance(data, Iterable)
    return known and is_object(data)


def inputs(
    data: Data,
    network: LatentNetwork,
    batch_size: int = 256,
    *,
    shuffle: bool = False,
    seed: Seed = None,
    least: int = 1,
    share: Share | None = None,
) -> Iterator[Any]:
    """Iterate over the inputs ``x`` of all batches, on the network's device.

    Args:
        data: in any of the forms of :data:`Data`.
        network: says where, and in which precision.
        batch_size: as in :func:`as_batches`, and so are the others.
        shuffle: whether to shuffle.
        seed: seeds the order.
        least: as in :func:`folded`.
        share: which batches; None for all.
    """
    batches = as_batches(data, batch_size, shuffle=shuffle, seed=seed, least=least)
    if share is not None:
        batches, least = share.of(batches), share.least
    limit = None if share is None else share.own_limit(batches)
    found: Iterable[Any] = islice(folded(batches, least), limit)
    if share is not None and share.rounds and share.processes.size > 1:
        found = in_step(share.processes, found)
    for position, batch in enumerate(found):
        if batch is None:
            raise DataError(
                "data: this process has fewer batches than others, but layers share statistics between "
                "processes. Give all processes as many, or a Dataset, a DataLoader of one, or tensors."
            )
        x = split(batch).x
        if not is_object(x) and first_tensor(x).device.type == "cpu" and not bool(all_finite(x)):
            raise DataError(f"data: batch {position} has inputs that are not finite.")
        yield network.prepare(x)


def gather(data: Data, batch_size: int = 256) -> MiniBatch:
    """Join all batches into one.

    Raises:
        DataError: if the data are empty, or cannot be joined.
    """
    data = as_tensors(data)
    if isinstance(data, (Tensor, tuple)):
        data = [data]
    parts = [split(batch) for batch in as_batches(data, batch_size)]
    if not parts or any(isinstance(x, Tensor) and not x.ndim for x, *_ in parts):
        raise DataError("data: there is no batch.")
    whole: MiniBatch = joined(parts)
    return whole
