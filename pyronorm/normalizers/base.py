"""The layer with latent statistics, and the interface of a normalizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Proxy

from pyronorm.checks import Count, Finite, NotNegative, check_fields, checked
from pyronorm.errors import OptionError
from pyronorm.normalizers.calls import check_examples, check_input, graph_node, is_single_example
from pyronorm.normalizers.fold import fold
from pyronorm.normalizers.handover import handed_over, present_call
from pyronorm.normalizers.kernels import affine_each
from pyronorm.normalizers.origin import Origin
from pyronorm.normalizers.words import population_in_words
from pyronorm.stats import Moments

if TYPE_CHECKING:
    from pyronorm.normalizers.freshness import Stamp
    from pyronorm.normalizers.watch import Watch

__all__ = ["LatentNorm", "Normalizer"]


class Normalizer(ABC):
    r"""Where the reference statistics :math:`(\mu, \sigma)` of a layer come from.

    A normalizer computes :math:`y = w \hat x + b` with :math:`\hat x = (x - \mu)/\sigma` in one pass
    over the activations. It is a frozen dataclass of settings and holds no tensors: what has to be
    kept (population statistics, say) are buffers of the :class:`LatentNorm` it serves, declared by
    :meth:`buffers`.
    """

    eps: NotNegative | None
    """Added to the variance; None takes the converted layer's own, or 1e-5 in a new layer."""

    handles_channel_last: ClassVar[bool] = False
    """Whether :meth:`normalize` takes inputs with the channel axis last as they are."""

    uses_batch: ClassVar[bool] = False
    """Whether statistics are taken over the batch in training mode."""

    keeps_population: ClassVar[bool] = False
    """Whether the layer keeps ``running_mean`` and ``running_var``, which latents are relative to."""

    shared_by_batch: ClassVar[bool] = True
    """Whether all examples of a batch have one pair of statistics, where they are taken over it."""

    spans_processes: ClassVar[bool] = False
    """Whether batch statistics, and moments that a layer reports, are those of all processes."""

    owns_linear: ClassVar[bool] = False
    """Whether the layer holds the linear layer before it, as ``linear``: its input is that one's."""

    needs_example: ClassVar[bool] = False
    """Whether :meth:`adopt` has to follow a run of the network on an example."""

    @property
    def fixed_batch_size(self) -> int | None:
        """Examples behind one pair of batch statistics; None for as many as come together."""
        return None

    @property
    def least_batch_size(self) -> int:
        """The fewest examples that batch statistics need, whatever the positions of an example."""
        return 2 if self.uses_batch else 1

    def __post_init__(self) -> None:
        check_fields(self)

    def describe(self, layer: LatentNorm) -> str:
        """Where the statistics of that layer come from, in words, for a conversion report.

        Unless overridden: by :attr:`uses_batch`, :attr:`keeps_population`, or the docstring's line.
        """
        if self.uses_batch:
            size = self.fixed_batch_size
            batch = "batch" if size is None else f"virtual batches of {size}"
            return f"{batch} in training; {population_in_words(layer)}"
        if self.keeps_population:
            return "population, fixed"
        line = (type(self).__doc__ or "").strip().partition("\n")[0].rstrip(".")
        # A dataclass without a docstring is given its signature for one.
        return line if line and not line.startswith(f"{type(self).__name__}(") else "its own"

    def channel_axis(self, layer: LatentNorm) -> int | None:
        """The axis of the layer's input that holds its channels; None if the input has others."""
        return -1 if layer.channel_last else 1

    def buffers(self, num_channels: Count) -> dict[str, Tensor]:
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
            where they are those of an example; those of the population, if it is kept.
        """
        if not self.keeps_population:
            return None
        var = layer.state("running_var").to(like)
        return layer.state("running_mean").to(like), (var + layer.eps).sqrt()

    def adapted(self, eps: NotNegative) -> Normalizer:
        """The normalizer with a converted layer's ``eps``, where it leaves its own open."""
        return replace(self, eps=eps) if self.eps is None else self  # type: ignore[type-var]

    def adopt(self, layer: LatentNorm, origin: Origin) -> None:
        """Take over what the original layer kept, and what the layer has to know of its place.

        :func:`pyronorm.convert` calls it once for each layer, when all are in their places with weights
        and biases. Unless overridden it carries population statistics, where the normalizer keeps them.

        Args:
            layer: the new layer; its buffers, parts and :attr:`LatentNorm.surroundings` change.
            origin: the layer it replaces, and what may be asked about the network.

        Raises:
            ConversionError: if the original lacks what this normalizer needs.
        """
        if not self.keeps_population or origin.mean is None or origin.var is None:
            return
        layer._buffers["running_mean"], layer._buffers["running_var"] = origin.mean, origin.var
        if origin.num_batches is not None:
            layer._buffers["num_batches_tracked"] = origin.num_batches
        elif origin.has_population:
            layer.state("num_batches_tracked").fill_(1)  # not counted, but known

    def fitted(self, x: Tensor) -> Normalizer:
        """The normalizer for a network of such inputs ``x``; itself, unless it depends on them."""
        return self

    def shared(self, layers: Sequence[LatentNorm], like: Tensor) -> Sequence[Any] | None:
        """What a call of the network computes once for all draws, since latents do not change it.

        Args:
            layers: all layers of the network whose normalizer is of this class; each gets its value
                as :attr:`LatentNorm.shared` during the call.
            like: gives device and dtype.
        """
        return None

    def given(self, layer: LatentNorm, args: Any, kwargs: Any) -> Normalizer:
        """The normalizer for a call with further arguments, such as the graph that each node is of.

        Args:
            layer: gives the name for messages.
            args: positional arguments after the input.
            kwargs: arguments by name.

        Raises:
            OptionError: unless overridden: a normalizer takes an input alone.
        """
        raise OptionError(
            f"{layer.name}: {type(self).__name__} takes an input alone, got {len(args) + len(kwargs)} "
            "further arguments."
        )

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
        parts: modules that the layer holds, by name: those its normalizer works with, and those that
            follow.
        then: what is applied to the output, in order, such as an activation of the original layer:
            names of parts, or functions.
        ranks: the numbers of axes that an input may have; None for any from 2 on.
        unbatched: whether an input with one axis less is a single example.
        weight_name: the name of the weight, as in the original layer.
        bias_name: of the bias.
        weight_plus: added to the weight: 1 where it is learned as a difference from 1.

    Attributes:
        surroundings: what :meth:`Normalizer.adopt` found out about the layer's place; for its
            normalizer alone.

    Shape:
        - input and output: ``(batch, channel, *spatial)``, or ``(batch, *spatial, channel)`` if
          ``channel_last`` (if the normalizer owns the linear layer: that layer's output)

    Raises:
        ShapeError: if an input does not have the layer's channels.

    Source: Shekhovtsov & Flach, "Stochastic Normalizations as Bayesian Learning" (ACCV 2018).
    """

    weight: Tensor | None
    bias: Tensor | None
    recorder: Callable[[LatentNorm, Moments], None] | None

    @checked
    def __init__(
        self,
        normalizer: Normalizer,
        num_channels: Count,
        *,
        affine: bool = True,
        bias: bool = True,
        channel_last: bool = False,
        parts: Mapping[str, nn.Module] | None = None,
        then: Sequence[str | Callable[[Tensor], Tensor]] = (),
        ranks: Sequence[Count] | None = None,
        unbatched: bool = False,
        weight_name: str = "weight",
        bias_name: str = "bias",
        weight_plus: Finite = 0.0,
    ) -> None:
        super().__init__()
        self.normalizer, self.num_channels = normalizer, num_channels
        self.channel_last = channel_last
        self.name = type(self).__name__
        for key, part in (parts or {}).items():
            self.add_module(key, part)
        self.then = tuple(then)
        self.ranks, self.unbatched = None if ranks is None else tuple(ranks), unbatched
        self.first_ranks: tuple[int, ...] = ()  # of inputs with channels on axis 1 all the same
        self.original = ""  # class of the converted layer, e.g. "BatchNorm2d"
        self.weight_name, self.bias_name, self.weight_plus = weight_name, bias_name, weight_plus
        weight = nn.Parameter(torch.ones(num_channels) - weight_plus) if affine else None
        self.register_parameter(weight_name, weight)
        offset = nn.Parameter(torch.zeros(num_channels)) if affine and bias else None
        self.register_parameter(bias_name, offset)
        for key, value in normalizer.buffers(num_channels).items():
            self.register_buffer(key, value)
        self.statistics_stamp: Stamp | None = None
        self.unused = False  # whether it never ran when statistics were estimated
        self.watch: Watch | None = None  # of the network, where statistics are over the batch
        self.surroundings: Any = None
        self.recorder = None

    @property
    def eps(self) -> float:
        """Added to the variance under the root."""
        return 1e-5 if self.normalizer.eps is None else self.normalizer.eps

    @property
    def gain(self) -> Tensor | None:
        r"""What multiplies :math:`\hat x` without latents, ``(channel, *spatial)``; None for 1."""
        weight = self._affine(self.weight_name)
        return weight + self.weight_plus if weight is not None and self.weight_plus else weight

    @property
    def offset(self) -> Tensor | None:
        """What is added to that, of the same shape; None for 0."""
        return self._affine(self.bias_name)

    def _affine(self, name: str) -> Tensor | None:
        tensor: Tensor | None = self._parameters.get(name)
        tensor = self._buffers.get(name) if tensor is None else tensor  # of a frozen layer
        if tensor is not None and tensor.ndim != 1 and tensor.numel() == self.num_channels:
            return tensor.flatten()
        return tensor

    @property
    def latents(self) -> tuple[Tensor, Tensor] | None:
        """The shift and scale handed over for the present call; None for neutral ones."""
        call = present_call(self)
        return None if call is None else call.given(self, call.latents)

    @property
    def shared(self) -> Any:
        """What :meth:`Normalizer.shared` computed for the layer and the present call, if anything."""
        call = present_call(self)
        return None if call is None else call.given(self, call.shared)

    def state(self, name: str) -> Tensor:
        """The buffer of that name."""
        if (value := self._buffers.get(name)) is None:
            raise OptionError(f"{self.name} has no buffer {name!r}; it has {[*self._buffers]}.")
        return value

    def part(self, name: str) -> nn.Module | None:
        """The module of that name that the layer holds; None if there is none."""
        return self._modules.get(name)

    def forward(
        self, x: Float[Tensor, "batch *dims"] | Proxy, *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch *out_dims"] | Proxy:
        """Normalize ``x``, with the latents handed over for this call if there are any."""
        if isinstance(x, Proxy):
            return graph_node(self, x, args, kwargs)
        if is_single_example(self, x):
            return self._run(x[None], args, kwargs)[0]
        if x.ndim in self.first_ranks:
            return self._run(x.movedim(1, -1), args, kwargs).movedim(-1, 1)
        return self._run(x, args, kwargs)

    def _run(self, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        check_input(self, x)
        if self.watch is not None and not self.training:
            self.watch.before_layer(self)
        normalizer = self.normalizer
        if args or kwargs:
            normalizer = normalizer.given(self, args, kwargs)
        move = self.channel_last and not normalizer.handles_channel_last
        call = present_call(self)
        y = self._normalize(normalizer, x.movedim(-1, 1) if move else x, call)
        y = y.movedim(1, -1).contiguous() if move else y  # networks take views of such outputs
        for step in self.then:
            y = self.get_submodule(step)(y) if isinstance(step, str) else step(y)
        if call is not None and call.seen is not None:
            call.seen.note(y)
        return y

    def _normalize(self, normalizer: Normalizer, x: Tensor, call: handed_over | None) -> Tensor:
        folded = None if call is None else call.given(self, call.folded)
        if folded is None:
            latents = None if call is None else call.given(self, call.latents)
            if latents is None:
                return normalizer.normalize(self, x, self.gain, self.offset)
            shift = latents[0]
            folded = fold(self, *latents)
        else:
            shift = folded[0]
        if shift.ndim == 1:
            return normalizer.normalize(self, x, *folded)
        check_examples(self, x, shift)
        return normalizer.normalize_each(self, x, *folded)

    def extra_repr(self) -> str:
        """Show normalizer, channels and options in ``print(network)``."""
        gain, offset = self.gain, self.offset
        options = ", affine=False" if gain is None else ", bias=False" if offset is None else ""
        options += ", channel_last=True" if self.channel_last else ""
        return f"{self.normalizer}, num_channels={self.num_channels}{options}"
