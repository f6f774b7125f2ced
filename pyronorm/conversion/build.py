"""Make the latent layer that takes the place of an original one."""

from __future__ import annotations

from torch import Tensor, nn

from pyronorm.conversion.kind import Kind
from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.words import plain_name

__all__ = ["build"]

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def build(name: str, old: nn.Module, kind: Kind, normalizer: Normalizer | None) -> LatentNorm:
    """Make a latent layer with the parameters, parts and hooks of an original one.

    What its normalizer takes over is not in it yet: see
    :meth:`pyronorm.normalizers.Normalizer.adopt`.

    Args:
        name: the layer's name.
        old: the original layer.
        kind: what it is.
        normalizer: the normalizer of the new layer; None for that of the kind.

    Raises:
        ConversionError: if that normalizer cannot take the layer's place.
    """
    if normalizer is not None and kind.fixed:
        raise ConversionError(
            f"convert: layer {name!r} ({type(old).__name__}) {kind.fixed}, which no other normalizer "
            "can take over. Leave it out with only=[...]."
        )
    own = kind.normalizer
    if normalizer is not None:
        own = normalizer if own.eps is None else normalizer.adapted(own.eps)
    names = (*kind.then, *(name for name in kind.keeps if name in old._modules))
    parts = {part: old.get_submodule(part) for part in names if isinstance(part, str)}
    try:
        new = LatentNorm(
            own,
            kind.num_channels,
            affine=False,
            channel_last=kind.channel_last,
            parts=parts,
            then=kind.then,
            ranks=kind.ranks,
            unbatched=kind.unbatched,
            weight_name=kind.weight,
            bias_name=kind.bias,
            weight_plus=kind.weight_plus,
        )
    except OptionError as error:
        raise ConversionError(f"convert: layer {name!r}: {error}") from error
    new.name, new.original = plain_name(name) or "(network)", type(old).__name__
    new.first_ranks = kind.first_ranks
    reference = _reference_tensor(old)
    if reference is not None:
        for key, buffer in new._buffers.items():
            if buffer is not None:
                dtype = reference.dtype if buffer.is_floating_point() else buffer.dtype
                new._buffers[key] = buffer.to(reference.device, dtype)
    for key in (kind.weight, kind.bias):  # the same tensors, trained or not as before
        if key in old._buffers:  # a frozen layer
            delattr(new, key)
            new.register_buffer(key, old._buffers[key])
        else:
            setattr(new, key, getattr(old, key, None))
    for key in kind.keeps:
        if key in old._parameters:
            new.register_parameter(key, old._parameters[key])
        elif key in old._buffers:
            kept = key not in old._non_persistent_buffers_set
            new.register_buffer(key, old._buffers[key], persistent=kept)
    for key, value in vars(
        old
    ).items():  # what the network may read: num_features, normalized_shape
        if isinstance(value, (int, float, str, tuple)) and not (
            key.startswith("_") or key in vars(new) or hasattr(type(new), key)
        ):
            setattr(new, key, value)
    for hooks in _HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))
    new._is_full_backward_hook = old._is_full_backward_hook
    modes = [(part, part.training) for part in new.modules()]
    new.train(old.training)
    for part, training in modes[1:]:
        part.training = training
    return new


def _reference_tensor(old: nn.Module) -> Tensor | None:
    tensors = (*old.parameters(), *old.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)
