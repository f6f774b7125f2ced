"""Run a layer on random inputs, to see whether it is what it is said to be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pyronorm.conversion.build import build
from pyronorm.conversion.kind import Kind
from pyronorm.conversion.origin import LayerOrigin
from pyronorm.errors import ConversionError, ShapeError
from pyronorm.randomness import seeded

__all__ = ["Comparison", "compare", "has_bounded_output", "is_computable", "randomized", "verify"]

_TOLERANCE = 1e-4
_BATCH, _SIZES = 4, (3, 2, 2)  # of the axes beside the channels
# Large beside eps, and so small that eps matters.
_SCALES = ((3.0, 2.0), (1e-2, 0.0), (1e-4, 0.0))


@dataclass
class Comparison:
    """A layer beside the one that would take its place.

    Attributes:
        ranks: numbers of axes of the inputs on which both give the same.
        difference: the largest relative difference of outputs.
        problem: where and how they differ first; empty if they do not.
    """

    ranks: list[int] = field(default_factory=list)
    difference: float = 0.0
    problem: str = ""


def verify(layer: nn.Module, kind: Kind) -> None:
    """Refuse a layer that does not compute what its kind computes.

    Args:
        layer: the original layer.
        kind: what it is said to be.

    Raises:
        ConversionError: with the largest difference.
    """
    if not is_computable(layer):
        return
    found = compare(layer, kind)
    if found.problem:
        raise ConversionError(f"is not {kind.normalizer}: {found.problem}")
    if not found.ranks:
        axis = "the last axis" if kind.channel_last else "axis 1"
        raise ConversionError(
            f"cannot be checked to be {kind.normalizer}: it runs on none of the random inputs that have "
            f"{kind.num_channels} channels on {axis}"
        )


def is_computable(layer: nn.Module) -> bool:
    """Whether its tensors have numbers, as those on the meta device have not."""
    return not any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))


@torch.no_grad()
def compare(layer: nn.Module, kind: Kind) -> Comparison:
    """Run a layer and its replacement on random inputs of all ranks that the layer takes.

    In training and in evaluation mode, with random weights and statistics. Neither the layer nor
    torch's generators change.

    Args:
        layer: the original layer.
        kind: what it may be.
    """
    found = Comparison()
    with seeded(0):
        original = randomized(layer)
        twin = copy.deepcopy(original)
        new = build("probe", twin, kind, None)
        new.normalizer.adopt(new, LayerOrigin("probe", twin, kind))
        for shape in _shapes(layer, kind):
            same = False
            for std, mean in _SCALES:
                x = std * torch.randn(shape, dtype=torch.double) + mean
                for training in (False, True):
                    expected = _output(original, x, training)
                    if expected is None:
                        continue
                    same = True
                    try:
                        problem, difference = _difference(expected, new, x, training)
                    except ShapeError:  # nothing to normalize, where torch gives constants
                        same = False
                        break
                    found.difference = max(found.difference, difference)
                    found.problem = found.problem or problem
            if same:
                found.ranks.append(len(shape))
            if found.problem:
                break
    return found


def _difference(expected: Tensor, new: nn.Module, x: Tensor, training: bool) -> tuple[str, float]:
    mode = "training" if training else "evaluation"
    case = f"on a random input of shape {tuple(x.shape)} in {mode} mode"
    with seeded(1):
        y: Tensor = new.train(training)(x.clone())
    if y.shape != expected.shape:
        return f"{case} it has the shape {tuple(expected.shape)}, that {tuple(y.shape)}", float(
            "inf"
        )
    difference = float(((y - expected).abs() / (1 + expected.abs())).max())
    if difference <= _TOLERANCE:
        return "", difference
    return f"{case} the outputs differ by {difference:.2g}", difference


def _output(layer: nn.Module, x: Tensor, training: bool) -> Tensor | None:
    """The output of a copy (a layer may write statistics); None if it does not take the input."""
    layer = copy.deepcopy(layer)
    try:
        with seeded(1):
            y = layer.train(training)(x.clone())
    except Exception:  # whatever a foreign layer raises
        return None
    return y if isinstance(y, Tensor) and y.shape == x.shape else None


def _shapes(layer: nn.Module, kind: Kind) -> Iterator[tuple[int, ...]]:
    """Batches of all ranks that the kind takes."""
    weight = getattr(layer, kind.weight, None)
    several: tuple[int, ...] = ()
    if isinstance(weight, Tensor) and weight.ndim > 1 and weight.numel() > kind.num_channels:
        several = tuple(weight.shape)
    for axes in range(4):
        sizes = _SIZES[:axes]
        if several:
            shape: tuple[int, ...] = (_BATCH, *sizes, *several)
        elif kind.channel_last and axes + 2 not in kind.first_ranks:
            shape = (_BATCH, *sizes, kind.num_channels)
        else:
            shape = (_BATCH, kind.num_channels, *sizes)
        if kind.ranks is None or len(shape) in kind.ranks:
            yield shape


@torch.no_grad()
def has_bounded_output(layer: nn.Module, channels: int) -> bool | None:
    """Whether outputs stay as large as they are when inputs grow: what normalization is for.

    Args:
        layer: a layer of any class.
        channels: how many channels to try.

    Returns:
        None if it runs on no input.
    """
    answers = []
    with seeded(0):
        layer = randomized(layer)
        for axes in range(4):
            for shape in (
                (_BATCH, *_SIZES[:axes], channels),
                (_BATCH, channels, *_SIZES[:axes]),
            ):
                x = torch.randn(shape, dtype=torch.double)
                outputs = [_output(layer, factor * x, False) for factor in (0.0, 1e3, 1e6)]
                if any(y is None for y in outputs):
                    continue
                at_zero, large, larger = (y for y in outputs if y is not None)
                ratio = (larger - at_zero).norm() / (large - at_zero).norm()
                answers.append(0.5 < float(ratio) < 2)
    return any(answers) if answers else None


def randomized(layer: nn.Module) -> nn.Module:
    """A copy in double precision on the CPU, without hooks, with random tensors of its own."""
    copied = copy.deepcopy(layer).cpu().double()
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for tensors in (copied._parameters, copied._buffers):
        for key, tensor in tensors.items():
            if tensor is not None and tensor.is_floating_point():
                low, high = (0.5, 2.0) if "var" in key else (-1.5, 1.5)
                tensor.data.uniform_(low, high)
    return copied
