"""Layers that keep their own statistics, which no normalizer of this library has."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pyronorm.checks import checked
from pyronorm.conversion.kind import Kind
from pyronorm.conversion.probe import compare, has_bounded_output
from pyronorm.errors import ConversionError
from pyronorm.normalizers.original import Original

__all__ = ["describe_own", "has_own_statistics", "own_statistics"]

_CLASSES = (
    "torch_geometric.nn.norm.graph_norm.GraphNorm",
    "torch_geometric.nn.norm.instance_norm.InstanceNorm",
    "torch_geometric.nn.norm.layer_norm.LayerNorm",
    *(f"timm.layers.evo_norm.EvoNorm2d{kind}" for kind in ("S0", "S0a", "S1", "S1a", "S2", "S2a")),
    "timm.layers.filter_response_norm.FilterResponseNormAct2d",
    "timm.layers.filter_response_norm.FilterResponseNormTlu2d",
)
_SIZES = ("in_channels", "num_features", "num_channels")


def has_own_statistics(layer: nn.Module) -> bool:
    """Whether a layer is of a public class that :func:`own_statistics` is for, by its full name."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}" in _CLASSES


@checked
def own_statistics(layer: nn.Module) -> Kind:
    r"""The kind of a layer whose statistics are its own, as a function for :func:`register`.

    For a layer that computes :math:`w\,\hat x + b` with a ``weight`` and ``bias`` per channel (or
    without) and keeps no running statistics, however :math:`\hat x` comes about: over the nodes of
    each graph, with further arguments, or with a nonlinear numerator as EvoNorm has. Child modules
    may follow, such as an activation. The latents are those of its affine map,
    :math:`w \cdot \text{scale} \cdot (\hat x + \text{shift}) + b`; see
    :class:`~pyronorm.normalizers.Original`.

    Args:
        layer: the layer.

    Raises:
        ConversionError: if it is none of that, with the difference.

    Example:
        >>> from pyronorm.conversion import register
        >>> class HalfNorm(nn.GroupNorm):
        ...     def forward(self, x):
        ...         return super().forward(x) / 2 + self.bias[:, None] / 2
        >>> register(HalfNorm, own_statistics)
    """
    found = describe_own(layer)
    if isinstance(found, str):
        raise ConversionError(found)
    return found


def describe_own(layer: nn.Module) -> Kind | str:
    """The kind, or why there is none."""
    if any("running" in key for key, b in layer._buffers.items() if b is not None):
        return (
            "keeps running statistics, and normalizes in evaluation mode otherwise than in training"
        )
    weight = layer._parameters.get("weight")
    sizes = (getattr(layer, key, None) for key in _SIZES)
    channels = next((n for n in sizes if isinstance(n, int)), 0)
    channels = channels if weight is None else weight.numel()
    if channels < 1:
        return "has neither a weight nor a number of channels"
    if has_bounded_output(layer, channels) is False:
        return "does not normalize: its outputs grow with its inputs"
    children = tuple(name for name, _ in layer.named_children())
    own = (*layer._parameters, *(k for k, b in layer._buffers.items() if b is not None))
    keeps = tuple(key for key in own if key not in ("weight", "bias"))
    problem = f"runs on no random input with {channels} channels on axis 1 or on the last axis"
    for then in ((), children) if children else ((),):
        for last in (True, False):
            kind = Kind(
                Original(),
                channels,
                channel_last=last,
                then=then,
                keeps=(*keeps, *(name for name in children if name not in then)),
                fixed="takes statistics of its own",
            )
            found = compare(layer, kind)
            if found.ranks and not found.problem:
                return replace(kind, ranks=tuple(found.ranks))
            if found.problem:
                problem = (
                    f"has no weight and bias per channel that its output follows: {found.problem}"
                )
    return problem
