"""Say what a layer of an unregistered class is, by what it holds and computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyronorm.conversion.kind import Kind
from pyronorm.conversion.own_statistics import describe_own, has_own_statistics
from pyronorm.conversion.probe import Comparison, compare, has_bounded_output, is_computable
from pyronorm.errors import ConversionError
from pyronorm.normalizers.base import Normalizer
from pyronorm.normalizers.batch import Batch, Population
from pyronorm.normalizers.deviation import Deviation
from pyronorm.normalizers.group import Group, Instance, Layer
from pyronorm.normalizers.rms import RMS

__all__ = ["is_foreign_normalization", "recognize"]

_POPULATION = {"running_mean", "running_var", "num_batches_tracked"}
_BIASES = ("bias", "beta", "shift", "offset", "b")
_SIZES = ("num_features", "num_channels", "normalized_shape", "hidden_size", "dim", "channels")
_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 0.0)
_ALL_RANKS = [2, 3, 4, 5]

_Answer = Kind | str
_answers: dict[Any, _Answer] = {}  # of layers that are alike but for their numbers
_bounded: dict[Any, bool] = {}


def recognize(layer: nn.Module) -> Kind:
    """Find the kind that computes what a layer computes.

    The layer is compared with each kind that has tensors like its own, on random inputs of all ranks,
    in training and in evaluation mode; its name counts for nothing.

    Args:
        layer: of any class.

    Raises:
        ConversionError: if there is none, with how far the likeliest is off.
    """
    key = _key(layer)
    if key not in _answers:
        _answers[key] = _search(layer)
    answer = _answers[key]
    if isinstance(answer, str):
        raise ConversionError(
            f"{answer}. If it computes what a normalizer does, say so: "
            "pyronorm.conversion.register(layer_class, ...)"
        )
    return replace(answer, has_population=_has_population(layer))


def is_foreign_normalization(layer: nn.Module) -> bool:
    """Whether a layer of an unregistered class that is called a normalization is one.

    It is if a kind computes the same, or if its outputs do not grow with its inputs; a response
    normalization or a standardization with fixed numbers is none. Where that cannot be found out, it
    is taken for one.
    """
    key = _key(layer)
    if key not in _bounded:
        bounded = None
        if is_computable(layer):
            if isinstance(_answers.setdefault(key, _search(layer)), Kind):
                bounded = True
            else:
                bounded = has_bounded_output(layer, _num_channels(layer, _vectors(layer)) or 4)
        _bounded[key] = bounded is not False
    return _bounded[key]


def _search(layer: nn.Module) -> _Answer:
    if has_own_statistics(layer):
        return describe_own(layer)
    vectors = _vectors(layer)
    channels = _num_channels(layer, vectors)
    problem = _tensors_of_no_channel(layer, vectors)
    if problem:
        return problem
    if channels is None:
        return "is not of a registered class, and has neither a weight nor a number of channels"
    if len(vectors) > 2:
        return f"is not of a registered class, and has the tensors {', '.join(vectors)}"
    if channels == 1:
        return "normalizes over a single value"
    fitting: tuple[Comparison, Kind] | None = None
    best: tuple[Comparison, Kind] | None = None
    for kind in _candidates(layer, list(vectors), channels):
        found = compare(layer, kind)
        if not found.problem and len(found.ranks) > (len(fitting[0].ranks) if fitting else 0):
            fitting = found, kind  # on few inputs several kinds may agree
            if found.ranks == _ALL_RANKS:
                break
        if found.ranks and (best is None or found.difference < best[0].difference):
            best = found, kind
    if fitting is not None:
        kind, ranks = fitting[1], fitting[0].ranks
        return _with_ranks(*_with_other_layouts(layer, kind, ranks))
    if best is None:
        return (
            "is not of a registered class, and runs on no random input with "
            f"{channels} channels on axis 1 or on the last axis"
        )
    found, kind = best
    return f"is of no known kind; of {kind.normalizer}, the likeliest, {found.problem}"


def _with_other_layouts(layer: nn.Module, kind: Kind, ranks: list[int]) -> tuple[Kind, list[int]]:
    """The kind with the ranks at which channels are on axis 1, where it has them last at others."""
    others = tuple(rank for rank in _ALL_RANKS if rank not in ranks)
    if not kind.channel_last or not others:
        return kind, ranks
    found = compare(layer, replace(kind, ranks=others, first_ranks=others))
    if found.problem or not found.ranks:
        return kind, ranks
    kind = replace(kind, first_ranks=tuple(found.ranks))
    return kind, sorted(ranks + found.ranks)


def _tensors_of_no_channel(layer: nn.Module, vectors: dict[str, Tensor]) -> str:
    """Why the layer's tensors are not a number per channel each; empty if they are."""
    tensors = {**layer._parameters, **layer._buffers}
    for key in ("weight", "bias", "running_mean"):
        tensor = tensors.get(key)
        if tensor is not None and tensor.numel() != max(tensor.shape or (1,)):
            shape = tuple(tensor.shape)
            return (
                f"is not of a registered class, and its {key} of shape {shape} is not per channel"
            )
    lengths = {key: tensor.numel() for key, tensor in vectors.items()}
    if (mean := tensors.get("running_mean")) is not None:
        lengths["running_mean"] = mean.numel()
    if len(set(lengths.values())) < 2:
        return ""
    listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
    return (
        f"has tensors of different lengths ({listed}), so there is no shift and scale per channel; on "
        "irreducible representations (e3nn) a shift of all numbers would break the equivariance"
    )


def _with_ranks(kind: Kind, ranks: list[int]) -> Kind:
    """The kind for inputs of the ranks that the layer takes; it may broadcast others."""
    known = None if ranks == _ALL_RANKS else tuple(ranks)
    return replace(kind, ranks=known, unbatched=known is None and kind.channel_last)


def _candidates(layer: nn.Module, names: list[str], channels: int) -> Iterator[Kind]:
    """Kinds that a layer with these tensors may be."""
    then = tuple(name for name, _ in layer.named_children())
    for order in (names, names[::-1]):  # which of two is the weight
        named: Any = dict(zip(("weight", "bias"), order, strict=False))
        if len(order) == 1 and order[0] in _BIASES:
            named = {"bias": order[0]}
        for normalizer, last in _normalizers(layer, channels):
            for plus in (0.0, 1.0) if "weight" in named else (0.0,):
                yield Kind(
                    normalizer,
                    channels,
                    channel_last=last,
                    has_population=layer._buffers.get("running_mean") is not None,
                    then=then,
                    weight_plus=plus,
                    **named,
                )
        if len(names) < 2:
            break


def _normalizers(layer: nn.Module, channels: int) -> Iterator[tuple[Normalizer, bool]]:
    """Normalizers of each kind with each eps it may have, and whether channels are last."""
    if layer._buffers.get("running_mean") is not None:
        for eps in _epsilons(layer):
            yield Population(eps=eps), False
            yield Batch(eps=eps), False
        return
    groups = getattr(layer, "num_groups", getattr(layer, "groups", None))
    for eps in _epsilons(layer):
        yield RMS(eps=eps), True
        yield Layer(eps=eps), True
        yield RMS(eps=eps, per_position=True), False
        yield Layer(eps=eps, per_position=True), False
        if isinstance(groups, int) and groups > 0 and channels % groups == 0:
            yield Group(groups, eps=eps), False
        yield Layer(eps=eps), False
        yield RMS(eps=eps), False
        yield Instance(eps=eps), False
        yield Deviation(eps=eps), True
        yield Deviation(eps=eps, per_position=True), False


def _epsilons(layer: nn.Module) -> list[float | None]:
    """What a layer says that its eps is, or the usual ones."""
    own: list[float | None] = [
        float(value)
        for key, value in vars(layer).items()
        if "eps" in key and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return own or [*_EPS, None]


def _vectors(layer: nn.Module) -> dict[str, Tensor]:
    """The tensors with a number per channel that may be weight and bias, weights first."""
    tensors = {**layer._parameters, **layer._buffers}
    found = {
        key: tensor
        for key, tensor in tensors.items()
        if tensor is not None
        and key not in _POPULATION
        and tensor.numel() == max(tensor.shape or (0,))
    }
    return dict(sorted(found.items(), key=lambda item: item[0] in _BIASES))


def _num_channels(layer: nn.Module, vectors: dict[str, Tensor]) -> int | None:
    mean = layer._buffers.get("running_mean")
    for tensor in (mean, *vectors.values()):
        if tensor is not None:
            return tensor.numel()
    for name in _SIZES:
        size = getattr(layer, name, None)
        size = size[0] if isinstance(size, (tuple, list)) and len(size) == 1 else size
        if isinstance(size, int) and size > 0:
            return size
    return None


def _has_population(layer: nn.Module) -> bool:
    if layer._buffers.get("running_mean") is None:
        return False
    count = layer._buffers.get("num_batches_tracked")
    return count is None or int(count) > 0


def _key(layer: nn.Module) -> Any:
    """What decides about the kind: class, settings, shapes and children."""
    settings = tuple(
        (key, repr(value))
        for key, value in vars(layer).items()
        if not key.startswith("_") and key != "training"
    )
    shapes = tuple(
        (key, None if tensor is None else (tuple(tensor.shape), tensor.is_meta))
        for key, tensor in (*layer._parameters.items(), *layer._buffers.items())
    )
    return type(layer), settings, shapes, repr(list(layer.named_children()))
