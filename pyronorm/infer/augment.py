"""Training batches that are changed by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyronorm.errors import OptionError, ShapeError
from pyronorm.infer.batch import MiniBatch
from pyronorm.inputs import is_one_piece, num_examples, tensors_of

__all__ = ["Augment", "augmented"]

Augment = Callable[[Any, Tensor], tuple[Any, Tensor]]
"""Changes inputs and targets of a training batch, on their device."""


def augmented(batch: MiniBatch, augment: Augment) -> MiniBatch:
    """The batch with inputs and targets of the function.

    Args:
        batch: with targets, on the device.
        augment: the function.

    Raises:
        OptionError: if it returns no pair.
        ShapeError: if it changes the number of examples.
    """
    x, y, weight = batch
    assert y is not None
    new: Any = augment(x, y)
    if not isinstance(new, (tuple, list)) or len(new) != 2:
        raise OptionError(
            f"fit: augment(x, y) must return a pair (x, y), got {type(new).__name__}. One that changes "
            "the inputs alone is lambda x, y: (change(x), y)."
        )
    for name, before, after in (("inputs", x, new[0]), ("targets", y, new[1])):
        expected, came = _examples(before), _examples(after)
        if came != expected or (name == "targets" and not isinstance(after, Tensor)):
            raise ShapeError(
                f"fit: augment must return as many {name} as it gets, {expected}, got "
                f"{type(after).__name__ if came in (None, expected) else came}."
            )
    return MiniBatch(new[0], new[1], weight)


def _examples(value: Any) -> int | None:
    """The number of examples, None where there is no axis of them."""
    tensors = tensors_of(value)
    if not tensors or is_one_piece(value) or any(tensor.ndim == 0 for tensor in tensors.values()):
        return None
    return num_examples(value)
