"""What a batch is: inputs, targets, and how often each example counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyronorm.arrays import as_tensors
from pyronorm.devices import move
from pyronorm.errors import DataError
from pyronorm.inputs import (
    is_input,
    is_object,
    is_one_piece,
    map_tensors,
    tensors_of,
)
from pyronorm.latents import LatentNetwork

__all__ = ["MiniBatch", "batch_length", "joined", "split"]


class MiniBatch(NamedTuple):
    """A batch of examples, on axis 0 of every tensor.

    Attributes:
        x: inputs, as the network takes them.
        y: targets; None if there are none.
        weight: how often each example counts, shape ``(batch,)``; None for once.
    """

    x: Any
    y: Tensor | None = None
    weight: Tensor | None = None

    def to(self, network: LatentNetwork) -> MiniBatch:
        """The batch on the network's device; inputs and weights in its precision as well."""
        like = network.like
        return MiniBatch(
            network.prepare(self.x),
            None if self.y is None else move(self.y, like.device),
            None if self.weight is None else move(self.weight, like.device, like.dtype),
        )

    def targets(self, where: str) -> tuple[Tensor, Tensor | None]:
        """The targets, which must be there, and the weights.

        Args:
            where: who needs them, for the message.

        Raises:
            DataError: if there are none.
        """
        if self.y is None:
            raise DataError(f"{where}: needs pairs (x, y), got x alone.")
        return self.y, self.weight

    def arguments(self) -> tuple[Any, ...]:
        """What a model and a guide are called with: ``x``, ``y`` and ``weight`` as far as there are."""
        return tuple(part for part in self if part is not None)

    def rows(self, start: int, number: int) -> MiniBatch:
        """So many of its examples."""
        return MiniBatch(
            map_tensors(lambda tensor: tensor[start : start + number], self.x),
            None if self.y is None else self.y[start : start + number],
            None if self.weight is None else self.weight[start : start + number],
        )


def split(batch: Any) -> MiniBatch:
    """Read a batch as loaders give it: ``x``, ``(x, y)`` or ``(x, y, weight)``.

    Raises:
        DataError: if it is nothing of the kind.
    """
    if isinstance(batch, MiniBatch):
        return batch
    batch = as_tensors(batch)
    if is_object(batch) or not isinstance(batch, (tuple, list)):
        if is_input(batch):
            return MiniBatch(batch)
        kinds: object = type(batch).__name__
    else:
        if 1 <= len(batch) <= 3 and is_input(batch[0]):
            x, *rest = batch
            if all(isinstance(part, Tensor) and part.ndim for part in rest):
                if len(rest) == 2:
                    _check_weight(rest[0], rest[1])
                return MiniBatch(
                    tuple(x) if type(x) is list else x, *rest
                )  # loaders make lists of tuples
        kinds = [type(part).__name__ for part in batch]
    raise DataError(
        "data: a batch must be x, a pair (x, y) with a tensor y, or (x, y, weight), where x is a "
        "tensor, a tuple, dictionary or dataclass of tensors, or an object such as a batch of graphs; "
        f"got {kinds}. Where y is a part of a dictionary or object, name it: pyronorm.with_target(data, "
        "'labels'); arrays of NumPy are as good as tensors, tables become such by to_numpy(), a list of "
        "examples batches by a DataLoader."
    )


def batch_length(batch: Any) -> int:
    """The number of examples of a batch, on axis 0 of its first tensor that is one of examples."""
    if isinstance(batch, (tuple, list)) and is_one_piece(batch):
        batch = [part for part in batch if not is_one_piece(part)]
    return next((len(tensor) for tensor in tensors_of(batch).values()), 0)


def joined(parts: Sequence[Any]) -> Any:
    """Join batches, or inputs, of one structure along the axis of examples.

    Raises:
        DataError: if they are objects, of which nobody knows how.
    """
    if len(parts) == 1:
        return parts[0]
    if is_one_piece(parts):
        raise DataError(
            "data: batches of objects (graphs, packed sequences) cannot be joined. This needs all "
            "examples at once: give one batch that has them."
        )
    names = [tensors_of(part) for part in parts]
    if any(mine.keys() != names[0].keys() for mine in names):
        raise DataError(
            f"data: batches must have one structure, got tensors {[list(mine) for mine in names]}."
        )
    whole = iter([torch.cat([mine[name] for mine in names]) for name in names[0]])
    return map_tensors(lambda _: next(whole), parts[0])


def _check_weight(y: Tensor, weight: Tensor) -> None:
    if not weight.is_floating_point() or weight.shape != y.shape[:1]:
        raise DataError(
            "data: of (x, y, weight) the last is how often each example counts: floating point numbers "
            f"of shape {tuple(y.shape[:1])}, got {weight.dtype} of shape {tuple(weight.shape)}. Several "
            "inputs are a tuple in a pair: ((a, b), y)."
        )
    # What lies on a device is looked at by the model, in the first epoch.
    if weight.device.type == "cpu" and not bool(((weight >= 0) & weight.isfinite()).all()):
        raise DataError("data: weights must be finite and not negative.")
