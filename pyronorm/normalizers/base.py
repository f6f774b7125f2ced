"""The layer with latent statistics, and the interface of a normalizer."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.errors import OptionError, ShapeError
from pyronorm.stats import Moments

if TYPE_CHECKING:
    from pyronorm.normalizers.freshness import Stamp

__all__ = [
    "LatentNorm",
    "Normalizer",
    "affine",
    "affine_each",
    "float32_affine",
    "full_precision",
    "handed_over",
]


class Normalizer(ABC):
    r"""Where the reference statistics :math:`(\mu, \sigma)` of a layer come from.

    A normalizer computes :math:`y = w \hat x + b` with :math:`\hat x = (x - \mu)/\sigma` in one pass
    over the activations. It is a frozen dataclass of settings and holds no tensors: what has to be
    kept (population statistics, say) are buffers of the :class:`LatentNorm` it serves, declared by
    :meth:`buffers`.
    """

    eps: float | None
    """Added to the variance; None takes the converted layer's own, or 1e-5 in a new layer."""

    handles_channel_last: ClassVar[bool] = False
    """Whether :meth:`normalize` takes inputs with the channel axis last as they are."""

    uses_batch: ClassVar[bool] = False
    """Whether statistics are taken over the batch in training mode."""

    keeps_population: ClassVar[bool] = False
    """Whether the layer keeps population statistics per channel, ``running_mean`` and ``running_var``,
    that the latents are relative to."""

    @property
    def fixed_batch_size(self) -> int | None:
        """Examples behind one pair of batch statistics; None for as many as come together."""
        return None

    @property
    def least_batch_size(self) -> int:
        """The fewest examples that batch statistics need, whatever the positions of an example."""
        return 2 if self.uses_batch else 1

    def describe(self, layer: LatentNorm) -> str:
        """Where the statistics of that layer come from, in words, for a conversion report.

        Unless overridden it goes by what the normalizer says of itself: :attr:`uses_batch`,
        :attr:`keeps_population`, the linear layer it owns, or else the first line of its docstring.
        """
        if layer.linear is not None:
            return f"weights of {layer.linear_name or type(layer.linear).__name__}"
        if self.uses_batch:
            size = self.fixed_batch_size
            batch = "batch" if size is None else f"virtual batches of {size}"
            return f"{batch} in training; {_population_in_words(layer)}"
        if self.keeps_population:
            return "population, fixed"
        line = (type(self).__doc__ or "").strip().partition("\n")[0].rstrip(".")
        # A dataclass without a docstring is given its signature for one.
        return line if line and not line.startswith(f"{type(self).__name__}(") else "its own"

    def buffers(self, num_channels: int) -> dict[str, Tensor]:
        """Initial values of the buffers that a layer of that many channels must keep.

        Raises:
            OptionError: if the settings do not fit that many channels.
        """
        return {}

    def population(self, moments: Moments) -> dict[str, Tensor]:
        """What the buffers of population statistics become, where ``uses_batch``.

        Args:
            moments: of the whole data, pooled from those that the layer reported to its recorder.
        """
        return {"running_mean": moments.mean, "running_var": moments.var}

    def reference(self, layer: LatentNorm, like: Tensor) -> tuple[Tensor, Tensor] | None:
        r"""Mean and standard deviation per channel that the latents are relative to.

        Args:
            layer: gives the buffers.
            like: gives device and dtype.

        Returns:
            :math:`\mu` and :math:`\sqrt{\sigma^2 + \epsilon}`, each of shape ``(channel,)``; None
            where they are those of an example. By default those of the population, if it is kept.
        """
        if not self.keeps_population:
            return None
        var = layer.state("running_var").to(like)
        return layer.state("running_mean").to(like), (var + layer.eps).sqrt()

    def adapted(self, eps: float) -> Normalizer:
        """The normalizer with a converted layer's ``eps``, where it leaves its own open."""
        return replace(self, eps=eps) if self.eps is None else self  # type: ignore[type-var]

    @abstractmethod
    def normalize(
        self, layer: LatentNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        r"""Return :math:`w \hat x + b`.

        Args:
            layer: gives buffers, training flag and the name for messages.
            x: activations, shape ``(batch, channel, *spatial)``.
            weight: ``w`` of shape ``(channel,)``, or None for 1.
            bias: ``b`` of shape ``(channel,)``, or None for 0.
        """

    def normalize_each(self, layer: LatentNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Like :meth:`normalize`, with an affine map of its own for each example.

        Args:
            layer: as in :meth:`normalize`.
            x: as in :meth:`normalize`.
            weight: shape ``(batch, channel)``, or ``(1, channel)`` to be broadcast.
            bias: like ``weight``.
        """
        return affine_each(self.normalize(layer, x, None, None), weight, bias)


def _population_in_words(layer: LatentNorm) -> str:
    count = int(layer.state("num_batches_tracked"))
    if layer.statistics_stamp is None or count == 0:
        return "no population yet for evaluation"
    return f"population of {count:,} batch{'es' if count > 1 else ''} in evaluation"


_Pairs = Mapping["LatentNorm", tuple[Tensor, Tensor]]


@no_type_check  # torch.compile cannot see through run-time type checks here
class handed_over:  # noqa: N801
    """Context in which layers have latents, in this thread; the only place that gives them any.

    Contexts nest: layers that the inner one says nothing of keep what the outer one gave them.

    Args:
        latents: shift and scale of some layers.
        propagated: mean and variance of the input of some layers with a ``propagation``.
        sizes: gets the number of elements of each layer's output.
    """

    def __init__(
        self, latents: _Pairs, propagated: _Pairs | None = None, sizes: list[int] | None = None
    ) -> None:
        self.latents, self.propagated, self.sizes = latents, propagated or {}, sizes

    def __enter__(self) -> None:
        self._before = before = _HANDED.now
        if before is not None:
            self.latents = {**before.latents, **self.latents}
            self.propagated = {**before.propagated, **self.propagated}
            self.sizes = before.sizes if self.sizes is None else self.sizes
        _HANDED.now = self

    def __exit__(self, *error: object) -> None:
        _HANDED.now = self._before


class _Handed(threading.local):
    """What is handed over now, in this thread: layers are shared by all threads.

    torch.compile reads and writes such variables, while it cannot follow those of ``contextvars``.
    """

    now: handed_over | None = None


_HANDED = _Handed()


class LatentNorm(nn.Module):
    r"""A normalization layer whose statistics carry latent ``shift`` and ``scale``.

    .. math::
        y = \text{weight} \cdot \text{scale} \cdot (\hat x + \text{shift}) + \text{bias},
        \qquad \hat x = (x - \mu)/\sigma

    per channel, with reference statistics :math:`(\mu, \sigma)` from the ``normalizer``. The latents
    are folded into the affine map, so they cost no pass over the activations. Without latents
    (``shift = 0``, ``scale = 1``) it is an ordinary normalization layer. It never writes a buffer
    when it runs.

    Latents are not arguments of :meth:`forward`, since the layer sits inside somebody's network:
    :class:`pyronorm.LatentNetwork` hands them over for the time of one call.

    Args:
        normalizer: source of the reference statistics.
        num_channels: number of channels, the length of ``shift`` and ``scale``.
        affine: whether to learn ``weight`` and ``bias``.
        bias: whether to learn ``bias``, where there is a ``weight``.
        channel_last: the channel axis is the last one instead of axis 1.
        linear: the linear or convolution layer that a :class:`Weight` normalizer owns.

    Attributes:
        propagation: set by :func:`pyronorm.convert` for an :class:`Analytic` normalizer: mean and
            variance of the layer's input as a function of the weights.

    Shape:
        - input: ``(batch, channel, *spatial)``, or ``(batch, *spatial, channel)`` if
          ``channel_last``
        - output: the same (with ``linear``: from its input to its output)

    Raises:
        ShapeError: if an input does not have the layer's channels.

    Source: Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning" (ACCV 2018).
    """

    weight: Tensor | None
    bias: Tensor | None
    propagation: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    recorder: Callable[[LatentNorm, Moments], None] | None

    def __init__(
        self,
        normalizer: Normalizer,
        num_channels: int,
        *,
        affine: bool = True,
        bias: bool = True,
        channel_last: bool = False,
        linear: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if num_channels < 1:
            raise OptionError(f"LatentNorm: num_channels must be positive, got {num_channels}.")
        if normalizer.eps is not None and normalizer.eps < 0:
            raise OptionError(f"LatentNorm: eps must not be negative, got {normalizer.eps}.")
        self.normalizer = normalizer
        self.num_channels = num_channels
        self.channel_last = channel_last
        self.name = type(self).__name__
        self.linear = linear
        self.linear_name = ""  # where the linear layer was before it was taken in
        self.original = ""  # class of the converted layer, e.g. "BatchNorm2d"
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine and bias else None
        for key, value in normalizer.buffers(num_channels).items():
            self.register_buffer(key, value)
        self.statistics_stamp: Stamp | None = None
        self.propagation = None
        self.recorder = None

    @property
    def eps(self) -> float:
        """Added to the variance under the root."""
        return 1e-5 if self.normalizer.eps is None else self.normalizer.eps

    @property
    def latents(self) -> tuple[Tensor, Tensor] | None:
        """The shift and scale handed over for the present call; None for neutral ones."""
        now = _HANDED.now
        return None if now is None else now.latents.get(self)

    @property
    def propagated(self) -> tuple[Tensor, Tensor] | None:
        """The result of :attr:`propagation`, where it is known for the present call."""
        now = _HANDED.now
        return None if now is None else now.propagated.get(self)

    def state(self, name: str) -> Tensor:
        """The buffer of that name."""
        value = self._buffers[name]
        assert value is not None
        return value

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *out_dims"]:
        """Normalize ``x``, with the latents handed over for this call if there are any."""
        self._check_input(x)
        move = self.channel_last and not self.normalizer.handles_channel_last
        y = self._normalize(x.movedim(-1, 1) if move else x)
        now = _HANDED.now
        if now is not None and now.sizes is not None:
            now.sizes.append(y.numel())
        return y.movedim(1, -1) if move else y

    def _normalize(self, x: Tensor) -> Tensor:
        latents = self.latents
        if latents is None:
            return self.normalizer.normalize(self, x, self.weight, self.bias)
        shift, scale = latents
        weight, bias = self._fold(shift, scale)
        if shift.ndim == 1:
            return self.normalizer.normalize(self, x, weight, bias)
        if shift.shape[0] not in (1, x.shape[0]):
            raise ShapeError(
                f"{self.name}: latents for {shift.shape[0]} examples, but the input has "
                f"{x.shape[0]} along axis 0 (shape {tuple(x.shape)}). Per-example latents need the "
                "examples on axis 0 of every normalized layer; otherwise give one draw for all."
            )
        return self.normalizer.normalize_each(self, x, weight, bias)

    def _fold(self, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Affine map with the latents in it; both have the shape of the latents."""
        if self.weight is None:
            return scale, scale * shift
        extra = (1,) * (self.weight.ndim - 1)  # a layer norm over (channel, *spatial)
        if extra:
            shift, scale = shift.view(shift.shape + extra), scale.view(scale.shape + extra)
        weight = self.weight * scale
        if self.bias is None:
            return weight, weight * shift
        return weight, torch.addcmul(self.bias, weight, shift)

    def _check_input(self, x: Tensor) -> None:
        channels = self.num_channels if self.linear is None else None
        axis = -1 if self.channel_last else 1
        if x.ndim < 2 or (channels is not None and x.shape[axis] != channels):
            shape = "(batch, *spatial, channel)" if self.channel_last else "(batch, channel, ...)"
            raise ShapeError(
                f"{self.name}: expected an input of shape {shape} with {self.num_channels} "
                f"channels, got {tuple(x.shape)}."
            )

    def extra_repr(self) -> str:
        """Show normalizer, channels and options in ``print(network)``."""
        options = "" if self.weight is not None else ", affine=False"
        options += ", bias=False" if self.weight is not None and self.bias is None else ""
        options += ", channel_last=True" if self.channel_last else ""
        return f"{self.normalizer}, num_channels={self.num_channels}{options}"


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply an affine map per channel in one kernel, keeping the dtype of ``x``.

    Args:
        x: shape ``(batch, channel, *spatial)``.
        weight: shape ``(channel,)``, float32 or the dtype of ``x``.
        bias: like ``weight``.
    """
    zeros, ones = torch.zeros_like(weight), torch.ones_like(weight)
    # torch 2.11 refuses eps = 0; 1 + 1e-38 is 1
    return F.batch_norm(x, zeros, ones, weight, bias, False, 0.0, 1e-38)


def affine_each(x: Tensor, weight: Tensor, bias: Tensor, *, channel_last: bool = False) -> Tensor:
    """Apply one affine map per example and channel in one pass, keeping the dtype of ``x``.

    Args:
        x: shape ``(batch, channel, *spatial)``, or ``(batch, *spatial, channel)``.
        weight: shape ``(batch or 1, channel)``.
        bias: shape ``(batch or 1, channel)``.
        channel_last: where the channel axis of ``x`` is.
    """
    weight, bias = (_over_positions(p, x.ndim, channel_last) for p in (weight, bias))
    return torch.addcmul(bias, x, weight).to(x.dtype)


def _over_positions(p: Tensor, ndim: int, channel_last: bool) -> Tensor:
    ones = (1,) * (ndim - p.ndim)
    return p.view(p.shape[:1] + ones + p.shape[1:] if channel_last else p.shape + ones)


def float32_affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """For an input in half precision, the affine map in float32; otherwise as it is.

    Batch and instance kernels keep their statistics in the precision of the weight, and in that of
    the input if there is none: a mean of 100 would be off by up to 0.25.
    """
    if x.dtype not in (torch.bfloat16, torch.float16):
        return weight, bias
    weight = x.new_ones(x.shape[1], dtype=torch.float32) if weight is None else weight.float()
    return weight, None if bias is None else bias.float()


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the device of ``x``, where it is on: for statistics."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if under_autocast(device) else nullcontext()


# Looked up once: torch.compile of torch 2.11 cannot trace is_autocast_available.
_AUTOCAST = {d: torch.amp.is_autocast_available(d) for d in ("cpu", "cuda", "xpu", "mps")}


def under_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return _AUTOCAST.get(device, False) and torch.is_autocast_enabled(device)
