"""Run a layer on random inputs, to see whether it is what it is said to be."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyronorm.conversion.build import build
from pyronorm.conversion.kind import Kind
from pyronorm.conversion.origin import LayerOrigin
from pyronorm.errors import ConversionError, PyronormError
from pyronorm.normalizers.base import LatentNorm

__all__ = ["verify"]

_TOLERANCE = 1e-4
_BATCH, _SIZES = 5, (3, 4, 2, 2)  # of the axes beside the channels


@torch.no_grad()
def verify(layer: nn.Module, kind: Kind) -> None:
    """Refuse a layer that does not compute what its kind computes.

    Both run on random inputs of all ranks that the layer takes, in training and in evaluation mode,
    with random weights and statistics. Neither the layer nor torch's generators change.

    Args:
        layer: the original layer.
        kind: what it is said to be.

    Raises:
        ConversionError: with the largest difference.
    """
    if any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers())):
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = _randomized(layer)
        twin = copy.deepcopy(original)
        new = build("probe", twin, kind, None)
        new.normalizer.adopt(new, LayerOrigin("probe", twin, kind))
        tried = 0
        for x in _inputs(layer, kind):
            for training in (False, True):
                expected = _output(original, x, training)
                if expected is None:
                    continue
                tried += 1
                _compare(expected, new, x, training, kind)
    if not tried:
        axis = "the last axis" if kind.channel_last else "axis 1"
        raise ConversionError(
            f"cannot be checked to be {kind.normalizer}: it runs on none of the random inputs that have "
            f"{kind.num_channels} channels on {axis}"
        )


def _compare(expected: Tensor, new: LatentNorm, x: Tensor, training: bool, kind: Kind) -> None:
    mode = "training" if training else "evaluation"
    case = f"on a random input of shape {tuple(x.shape)} in {mode} mode"
    torch.manual_seed(1)
    try:
        y = new.train(training)(x)
    except PyronormError as error:
        raise ConversionError(f"is not {kind.normalizer}: {case} that says {error}") from None
    if y.shape != expected.shape:
        raise ConversionError(
            f"is not {kind.normalizer}: {case} it gives the shape {tuple(expected.shape)}, that "
            f"{tuple(y.shape)}"
        )
    scale = 1 + expected.abs()
    difference = float(((y - expected).abs() / scale).max()) if expected.numel() else 0.0
    if not difference <= _TOLERANCE:
        raise ConversionError(
            f"is not {kind.normalizer}: {case} the outputs differ by {difference:.2g}"
        )


def _output(layer: nn.Module, x: Tensor, training: bool) -> Tensor | None:
    """The output of a copy (a layer may write statistics); None if it does not take the input."""
    layer = copy.deepcopy(layer)
    torch.manual_seed(1)
    try:
        y = layer.train(training)(x.clone())
    except Exception:  # whatever a foreign layer raises
        return None
    return y if isinstance(y, Tensor) else None


def _inputs(layer: nn.Module, kind: Kind) -> Iterator[Tensor]:
    """Batches of all ranks that the kind takes, far from mean 0 and variance 1."""
    weight = getattr(layer, "weight", None)
    several = tuple(weight.shape) if isinstance(weight, Tensor) and weight.ndim > 1 else None
    for axes in range(4):
        sizes = _SIZES[:axes]
        if several is not None:
            size: tuple[int, ...] = (_BATCH, *sizes, *several)
        elif kind.channel_last:
            size = (_BATCH, *sizes, kind.num_channels)
        else:
            size = (_BATCH, kind.num_channels, *sizes)
        if kind.ranks is None or len(size) in kind.ranks:
            yield 3 * torch.randn(size, dtype=torch.double) + 2


def _randomized(layer: nn.Module) -> nn.Module:
    """A copy in double precision on the CPU with random tensors of its own."""
    copied = copy.deepcopy(layer).cpu().double()
    for tensors in (copied._parameters, copied._buffers):
        for key, tensor in tensors.items():
            if tensor is not None and tensor.is_floating_point():
                low, high = (0.5, 2.0) if "var" in key else (-1.5, 1.5)
                tensor.data.uniform_(low, high)
    return copied
