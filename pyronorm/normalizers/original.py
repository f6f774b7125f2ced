"""Whatever a converted layer computes, as long as its affine map is per channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyronorm.checks import NotNegative
from pyronorm.errors import ConversionError
from pyronorm.normalizers.base import LatentNorm, Normalizer
from pyronorm.normalizers.kernels import affine_each
from pyronorm.normalizers.origin import Origin

__all__ = ["Original"]


@dataclass(frozen=True)
class Original(Normalizer):
    r"""The statistics that a converted layer takes by itself, whatever they are.

    .. math::
        \hat x = f(x; w = 1, b = 0)

    where :math:`f(x; w, b)` is what the layer computes with weight :math:`w` and bias :math:`b`: for
    layers whose statistics no other normalizer has, such as those over the nodes of each graph, which
    may take further arguments, or with a nonlinear numerator. It is right where the layer is affine
    in them, :math:`f(x; w, b) = w\,f(x; 1, 0) + b`, and keeps no statistics; :func:`pyronorm.convert`
    checks both, and other normalizers cannot take the layer's place.

    Args:
        eps: not used; the layer has its own.
        args: of the present call, beside the input; set by :meth:`given`.
        kwargs: by name, likewise.
    """

    eps: NotNegative | None = None
    args: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    handles_channel_last: ClassVar[bool] = True

    def describe(self, layer: LatentNorm) -> str:
        """The layer's own."""
        return f"as {layer.original or 'the layer'} takes them"

    def adapted(self, eps: float) -> Normalizer:
        """Itself."""
        return self

    def adopt(self, layer: LatentNorm, origin: Origin) -> None:
        """Keep what the layer computes, without its tensors, which the new layer has."""
        if origin.mean is not None or origin.var is not None:
            raise ConversionError(
                f"convert: layer {layer.name!r} ({type(origin.layer).__name__}) keeps running "
                "statistics, which Original cannot take over."
            )
        layer.surroundings = _Function(origin.layer, layer.weight_name, layer.bias_name)

    def given(self, layer: LatentNorm, args: Any, kwargs: Any) -> Normalizer:
        """The original's further arguments are those of the call."""
        return replace(self, args=tuple(args), kwargs=kwargs)

    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Compute the original with neutral weight and bias, then apply these."""
        y: Tensor = layer.surroundings(layer, x, self.args, self.kwargs)
        if weight is None and bias is None:
            return y
        one = y.new_ones(layer.num_channels) if weight is None else weight
        zero = torch.zeros_like(one) if bias is None else bias
        return affine_each(y, one[None], zero[None], channel_last=layer.channel_last)

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Likewise, with an affine map per example."""
        return affine_each(
            self.normalize(layer, x, None, None), weight, bias, channel_last=layer.channel_last
        )


class _Function:
    """The forward of a layer as a function of its input and of tensors that another layer holds."""

    def __init__(self, original: nn.Module, weight: str, bias: str) -> None:
        self._kind = type(original)
        self._weight, self._bias = weight, bias
        tensors = ("_parameters", "_buffers", "_modules")
        self._settings = {k: v for k, v in vars(original).items() if k not in tensors}
        self._names = {key: tuple(vars(original)[key]) for key in tensors}
        shapes = {k: v.shape for k, v in original._parameters.items() if v is not None}
        self._shapes = {k: shapes[k] for k in (weight, bias) if k in shapes}

    def __call__(self, layer: LatentNorm, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        # A module for this call alone: other threads may run the layer at the same time.
        module = object.__new__(self._kind)
        module.__dict__.update(self._settings)
        for key, names in self._names.items():
            held = vars(layer)[key]
            module.__dict__[key] = {name: held.get(name) for name in names}
        for name, value in ((self._weight, 1.0), (self._bias, 0.0)):
            if name in self._shapes:
                like = layer._parameters[name]
                assert like is not None
                neutral = like.new_full(self._shapes[name], value)
                module._parameters[name] = neutral  # type: ignore[assignment]
        for step in layer.then:  # applied after the affine map
            if isinstance(step, str):
                module._modules[step] = nn.Identity()
        module.training = layer.training
        y: Tensor = module.forward(x, *args, **kwargs)
        return y
