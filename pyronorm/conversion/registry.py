"""What each layer class is: the registry that convert looks layers up in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from pyronorm.checks import checked
from pyronorm.conversion.holders import is_quantized
from pyronorm.conversion.kind import Kind, Part
from pyronorm.conversion.probe import verify
from pyronorm.conversion.recognize import is_foreign_normalization, recognize
from pyronorm.conversion.torch_layers import TORCH_LAYERS
from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.words import plain_name

__all__ = ["class_name", "kind_of", "normalization_layers", "register", "registered"]


_Describe = Callable[[Any], Kind]
_Function = TypeVar("_Function", bound=_Describe)
_KINDS: dict[type[nn.Module], _Describe] = {}
_TORCH = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_OTHERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.modules.conv._ConvNd, nn.RNNBase)
_POPULATION = ("running_mean", "running_var", "num_batches_tracked")
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@checked
def register(
    layer_class: Any,
    kind: Any = None,
    *,
    then: Sequence[Part] = (),
) -> Any:
    """Say what a normalization layer class is, so that :func:`pyronorm.convert` converts it.

    Each layer is checked when it is converted: on random inputs the new layer must compute what the
    original computes, in training and in evaluation mode.

    Args:
        layer_class: the class; subclasses of it are not meant.
        kind: a registered class that it is like; or a function that takes a layer and returns its
            :class:`Kind` (or raises a ConversionError with the reason why this one cannot be
            converted). Without it this is a decorator of such a function.
        then: what the layer applies to its normalized output: see :attr:`Kind.then`.

    Raises:
        OptionError: if ``layer_class`` is no class of modules, or the class it is like is not
            registered.

    Example:
        >>> class NormReLU(nn.BatchNorm2d):
        ...     def forward(self, x):
        ...         return super().forward(x).relu()
        >>> register(NormReLU, nn.BatchNorm2d, then=[torch.relu])
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise OptionError(f"register: expected a class of layers, got {layer_class!r}.")
    if kind is None:

        def decorate(function: _Function) -> _Function:
            register(layer_class, function, then=then)
            return function

        return decorate
    if isinstance(kind, type):
        if kind not in _KINDS:
            raise OptionError(
                f"register: {layer_class.__name__} is to be like {kind.__name__}, which is not "
                f"registered itself. There are {registered()}."
            )
        kind = _KINDS[kind]
    if not callable(kind):
        raise OptionError(
            "register: expected a function from a layer to its Kind, or a registered class, got "
            f"{kind!r}."
        )
    describe, extra = kind, tuple(then)
    _KINDS[layer_class] = lambda layer: _followed(describe(layer), extra)
    return None


def _followed(kind: Kind, then: tuple[Part, ...]) -> Kind:
    return replace(kind, then=(*kind.then, *then)) if then else kind


def registered() -> str:
    """The names of all registered classes, for messages."""
    return ", ".join(kind.__name__ for kind in _KINDS)


def normalization_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that are, or are taken for, normalization layers.

    Registered classes, subclasses of torch's, latent layers, and what has "Norm" in the name of its
    class and normalizes: better refused than skipped. What only holds such layers is none itself, nor
    are linear layers, parametrizations, and response normalizations.

    Args:
        network: any module.

    Returns:
        The layers by name; one that is registered at two places is there under both.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    inside = {
        id(m)
        for p in modules.values()
        if isinstance(p, (parametrize.ParametrizationList, LatentNorm))
        for m in p.modules()
        if m is not p
    }
    known: dict[int, bool] = {}
    return {
        name: module
        for name, module in modules.items()
        if id(module) not in inside and _is_normalization(module, known)
    }


def _is_normalization(module: nn.Module, known: dict[int, bool]) -> bool:
    if id(module) not in known:
        known[id(module)] = _decide(module, known)
    return known[id(module)]


def _decide(module: nn.Module, known: dict[int, bool]) -> bool:
    if type(module) in _KINDS or isinstance(module, (LatentNorm, *_TORCH)):
        return True
    if is_quantized(module) and "running_mean" in module._buffers:  # also fused with an activation
        return True
    if "Norm" not in class_name(module) or isinstance(module, _OTHERS):
        return False
    if parametrize.is_parametrized(module) or isinstance(module, torch.jit.ScriptModule):
        return True
    if type(module).__module__.startswith("torch.nn.utils"):
        return False
    parts = list(module.children())
    if parts:
        own = (*module._parameters.values(), *module._buffers.values())
        if all(tensor is None for tensor in own):
            return False  # it holds layers, and these count
        if any(_is_normalization(m, known) for m in module.modules() if m is not module):
            return False
    return is_foreign_normalization(module)


def kind_of(name: str, module: nn.Module) -> Kind:
    """Say what a normalization layer is.

    Args:
        name: the layer's name, for the message.
        module: the layer.

    Raises:
        ConversionError: saying which layer cannot be converted, why, and what to do.
    """
    try:
        _refuse_wrapped(module)
        kind = _describe(module)
        _refuse_contents(module, kind)
    except ConversionError as error:
        plain = plain_name(name)
        raise ConversionError(
            f"convert: layer {plain or '(the network itself)'!r} ({class_name(module)}) {error}. "
            f"To leave it as it is, skip=[{plain!r}]."
        ) from None
    return kind


def _describe(module: nn.Module) -> Kind:
    describe = _KINDS.get(type(module))
    if describe is None:
        return recognize(module)
    kind = describe(module)
    if type(module).__module__.partition(".")[0] != "torch":
        verify(module, kind)
    return kind


def _refuse_wrapped(module: nn.Module) -> None:
    """Refuse what is converted, compiled or parametrized already."""
    if isinstance(module, LatentNorm):
        raise ConversionError("is converted already; convert the original network instead")
    if isinstance(module, torch.jit.ScriptModule):
        raise ConversionError("is compiled by torch.jit; convert the network before compiling it")
    if is_quantized(module):
        raise ConversionError(
            "is quantized, and has no latents of real numbers; convert the network before quantizing it"
        )
    if parametrize.is_parametrized(module):
        tensors = " and ".join(repr(key) for key in module.parametrizations)  # type: ignore[union-attr]
        raise ConversionError(
            "is parametrized, and the conversion would lose that. Write the present values into the "
            f"layer, by torch.nn.utils.parametrize.remove_parametrizations(layer, {tensors})"
        )


def _refuse_contents(module: nn.Module, kind: Kind) -> None:
    """Refuse what somebody has put into a layer, and a new layer would not have."""
    if "forward" in vars(module):
        raise ConversionError(
            "has had its forward replaced, which the conversion would lose. Undo that first"
        )
    known = {kind.weight, kind.bias, *_POPULATION, *kind.then, *kind.keeps}
    extra = [k for k in (*module._parameters, *module._buffers, *module._modules) if k not in known]
    if extra:
        raise ConversionError(
            f"holds {extra[0]!r}, which a {class_name(module)} does not have and the conversion "
            "would lose. Remove it first (after torch.nn.utils.weight_norm: remove_weight_norm)"
        )
    if any(getattr(module, hooks) for hooks in _STATE_HOOKS):
        raise ConversionError(
            "has hooks on its state dict, which cannot be carried over. Remove them first"
        )


def class_name(module: nn.Module) -> str:
    """The name of a module's class, also of one compiled by torch.jit."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    return type(module).__name__


for _layer_class, _function in TORCH_LAYERS.items():
    register(_layer_class, _function)
