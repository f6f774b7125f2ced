"""A converted network as a pure function of its input and its latents."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.conversion.registry import normalization_layers
from pyronorm.devices import refuse_parts
from pyronorm.errors import ConversionError, DeviceError, OptionError, ShapeError
from pyronorm.inputs import (
    Output,
    first_tensor,
    is_one_piece,
    move_to,
    num_examples,
    refuse_call,
    run,
    select,
)
from pyronorm.latents.folding import Folding, called
from pyronorm.latents.space import LatentSpace
from pyronorm.latents.standardization import Standardization
from pyronorm.latents.values import check_values
from pyronorm.normalizers import LatentNorm, Normalizer
from pyronorm.normalizers.fold import Packed, fold_all
from pyronorm.normalizers.handover import handed_over
from pyronorm.normalizers.kernels import under_autocast
from pyronorm.normalizers.watch import watch

__all__ = ["LatentNetwork"]

_ONE_INPUT = (
    "Several inputs of a network are one argument: latent_network((a, b)), or a dictionary."
)


class LatentNetwork(nn.Module):
    r"""A network as a pure function :math:`f(x, \text{shift}, \text{scale})`.

    The latents of all layers are packed in two tensors whose last axis is :attr:`space`. Their shape
    says how many draws there are, and aligns with the batch on the right:

    ==============================  =================================  ============================
    ``shift`` and ``scale``         meaning                            output
    ==============================  =================================  ============================
    None                            neutral: shift 0, scale 1          ``(batch, *out)``
    ``(channel,)``                  one draw for all examples          ``(batch, *out)``
    ``(batch, channel)``            one draw per example               ``(batch, *out)``
    ``(*samples, 1, channel)``      many draws, each for all examples  ``(*samples, batch, *out)``
    ``(*samples, batch, channel)``  many draws per example             ``(*samples, batch, *out)``
    ==============================  =================================  ============================

    Many draws are evaluated in chunks of bounded size: several draws as one batch, each example under
    each draw with latents of its own. That takes a network whose examples do not depend on each other,
    which is tried out on two of them; others take one draw after the other (batch statistics, dropout
    that is switched on, values that Python decides by, inputs that cannot be cut into examples).
    Running the network writes no buffer and leaves nothing behind.

    In evaluation mode the population statistics of batch layers must belong to the present weights;
    missing or stale ones are refused.

    A **plain** network has no normalization and no latents, for the sake of comparison: a space of no
    channels. :func:`pyronorm.fit`, :func:`pyronorm.predict` and :func:`pyronorm.evaluate` take its model
    with the guide :class:`~pyronorm.guides.Point`; other guides, NUTS and ArviZ have nothing to work
    on and refuse it.

    Args:
        network: a converted network (:func:`pyronorm.convert`). It is shared, not copied.
        prefix: put before the names of the Pyro sites, for models with several networks.
        samples_per_call: how many draws to evaluate at once, where that is possible; None chooses by
            the size of the activations and the free memory.
        plain: the network has no normalization layer at all.
        output: what of the network's output counts, where that is not one tensor: a key or attribute
            (``"logits"``), a position, or a function of it.

    Raises:
        ConversionError: if the network has no layer with latent statistics; or has normalization
            layers although it is ``plain``.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        *,
        prefix: str = "",
        samples_per_call: Count | None = None,
        plain: bool = False,
        output: Output = None,
    ) -> None:
        super().__init__()
        if plain:
            _refuse_normalization(network)
        self.space = LatentSpace((), prefix) if plain else LatentSpace.of(network, prefix)
        self.network = network
        self.standardization = Standardization(self.space.num_channels, self.like)
        """What the latents are relative to; see :func:`pyronorm.standardize_latents`."""
        self.layers = tuple(m for m in network.modules() if isinstance(m, LatentNorm))
        """The layers with latents, in the order of :attr:`space`."""
        by_kind: dict[type[Normalizer], list[LatentNorm]] = {}
        for layer in self.layers:
            if type(layer.normalizer).shared is not Normalizer.shared:
                by_kind.setdefault(type(layer.normalizer), []).append(layer)
        self._sharing = tuple(map(tuple, by_kind.values()))
        self.samples_per_call = samples_per_call
        self.output = output
        self._folding = Folding()
        self._watch = watch(network)

    @classmethod
    @checked
    def of(cls, network: nn.Module, output: Output = None) -> LatentNetwork:
        """The network itself if it is one already, or a new LatentNetwork around it.

        Raises:
            OptionError: if it is one with another ``output``.
        """
        if not isinstance(network, cls):
            return cls(network, output=output)
        if output is not None and network.output != output:
            raise OptionError(
                f"output={output!r} is given to the model, but its LatentNetwork has "
                f"output={network.output!r}. Give it to one of them."
            )
        return network

    @property
    def like(self) -> Tensor:
        """An empty tensor on the network's device, with the dtype that latents should have."""
        for tensor in chain(self.network.parameters(), self.network.buffers()):
            if tensor.is_floating_point():
                refuse_parts([("", tensor)])
                dtype = torch.promote_types(tensor.dtype, torch.float32)
                return torch.empty(0, device=tensor.device, dtype=dtype)
        return torch.empty(0)

    def prepare(self, x: Any) -> Any:
        """Move an input to the network's device, and to its precision where it is floating point.

        Raises:
            ShapeError: if the network cannot be called with it: the number or names of its parts.
        """
        refuse_call(self.network, x)
        return move_to(self.network, x)

    def forward(
        self,
        x: Any,
        shift: Float[Tensor, "*draws channel"] | None = None,
        scale: Float[Tensor, "..."] | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: a batch of inputs, examples on axis 0 of every tensor: a tensor, a tuple for
                ``network(*x)``, a dictionary for ``network(**x)``, or a dataclass of tensors.
            shift: packed shifts, in one of the shapes above.
            scale: packed scales, positive, of the same shape.

        Returns:
            The network's output (the part that ``output`` says), with the draws' axes in front.

        Raises:
            ShapeError: if the latents do not fit the network, each other or the batch.
            DeviceError: if they are on another device than the input.
            DataError: if they are not finite, or a scale not above 0 (not looked at on a GPU).
            StatisticsError: in evaluation mode, if population statistics are missing or stale.
        """
        self._watch.before_call(self.network, self.layers)
        if shift is None or scale is None:
            if shift is not scale:
                raise ShapeError(
                    f"LatentNetwork: give both shift and scale, or neither. {_ONE_INPUT}"
                )
        else:
            self._check_shapes(x, shift, scale)
            if not am_i_wrapped():  # NUTS and training meet impossible values, and know what to do
                check_values("LatentNetwork", shift, scale)
            shift = self.standardization.shift(shift, scale)
        # What latents do not change: once for all layers and draws.
        shared: dict[nn.Module, Any] = {}
        for layers in self._sharing:
            values = layers[0].normalizer.shared(layers, self.like)
            shared.update(zip(layers, values or (), strict=False))
        if not shared:
            return self._forward(x, shift, scale)
        with handed_over({}, shared):
            return self._forward(x, shift, scale)

    def _forward(self, x: Any, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        if shift is None or scale is None:
            return self._evaluate(x, None, None)
        if shift.ndim <= 2:
            return self._evaluate_one(x, shift, scale)
        samples = shift.shape[:-2]
        output = self._evaluate_many(x, shift.flatten(0, -3), scale.flatten(0, -3))
        return output.reshape(samples + output.shape[1:])

    @torch.no_grad()
    def reference_statistics(self) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation that the latents are relative to, per channel.

        Returns:
            :math:`\mu` and :math:`\sigma = \sqrt{\sigma^2 + \epsilon}`, each of shape
            ``(channel,)``; NaN where the normalizer has no statistics but those of an example.

        Raises:
            OptionError: if the network is plain.
            StatisticsError: if population statistics are missing or stale.
        """
        self.refuse_plain("reference_statistics (and to_arviz)")
        self.check_statistics()
        means, stds = {}, {}
        for layer in self.layers:
            found = layer.normalizer.reference(layer, self.like)
            if found is not None and not layer.unused:
                means[layer], stds[layer] = found
        return self.standardization.reference(self.pack(means), self.pack(stds))

    @checked
    def refuse_plain(self, what: str) -> None:
        """Refuse a plain network, which has no latents.

        Args:
            what: what needs latents, for the message.

        Raises:
            OptionError: if the network is plain.
        """
        if not self.layers:
            raise OptionError(
                f"{what}: {type(self.network).__name__} is a plain network, without latents. Use the "
                "guide pyronorm.guides.Point with fit, predict and evaluate; for latents, build it with "
                "normalization layers and pyronorm.convert it."
            )

    @checked
    def pack(self, values: Mapping[LatentNorm, Tensor]) -> Float[Tensor, " channel"]:
        """Join one vector per layer; NaN for layers without one.

        Args:
            values: a vector of length ``num_channels`` for some layers.

        Returns:
            All channels of all layers, in the order of :attr:`space`; a fresh tensor.
        """
        like = self.like
        parts = [
            values[layer].to(like.device) if layer in values else like.new_full((n,), torch.nan)
            for layer, n in zip(self.layers, self.space.sizes, strict=True)
        ]
        return torch.cat(parts).to(like)  # one cast for all

    def _evaluate(self, x: Any, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        """Hand the latents to the layers for one call; shape (channel,) or (1 or batch, channel)."""
        latents = self._latents(shift, scale)
        with handed_over(latents, folded=fold_all(latents, shift, scale)) as call:
            output = select(run(self.network, x), self.output, self.network)
        return output if torch.compiler.is_compiling() else call.kept(output)

    def _latents(
        self, shift: Tensor | None, scale: Tensor | None
    ) -> Mapping[nn.Module, tuple[Tensor, Tensor]]:
        if shift is None or scale is None:
            return {}
        layers = self.layers
        if "_is_replica" in self.__dict__:  # DataParallel copies modules, but not a tuple of them
            layers = tuple(m for m in self.network.modules() if isinstance(m, LatentNorm))
        if not torch.compiler.is_compiling():
            return Packed(layers, shift, scale)
        sizes = [layer.num_channels for layer in layers]  # compiled code watches these anyway
        pairs = zip(shift.split(sizes, -1), scale.split(sizes, -1), strict=True)
        return dict(zip(layers, pairs, strict=True))  # which a compiler can follow

    def _evaluate_one(self, x: Any, shift: Tensor, scale: Tensor) -> Tensor:
        # One draw for all examples folds into the layers' own kernel.
        if shift.ndim == 2 and len(shift) == 1:
            shift, scale = shift[0], scale[0]
        return called(self, x, shift, scale)

    def _evaluate_many(self, x: Any, shift: Tensor, scale: Tensor) -> Tensor:
        """Many draws: latents of shape (sample, 1 or batch, channel)."""
        if len(shift) == 1:
            return self._evaluate_one(x, shift[0], scale[0])[None]
        if torch.compiler.is_compiling():
            if under_autocast(first_tensor(x).device.type):  # inside of vmap torch ignores it
                pairs = zip(shift, scale, strict=True)
                return torch.stack([self._evaluate_one(x, *pair) for pair in pairs])
            # The compiler sees the whole graph, so it needs no measuring.
            chunk = self.samples_per_call or len(shift)
            parts = zip(shift.split(chunk), scale.split(chunk), strict=True)
            return torch.cat([torch.func.vmap(self._evaluate, (None, 0, 0))(x, *p) for p in parts])
        return self._folding.evaluate(self, x, shift, scale)

    def _check_shapes(self, x: Any, shift: Tensor, scale: Tensor) -> None:
        for name, value in (("shift", shift), ("scale", scale)):
            if not isinstance(value, Tensor) or value.is_complex():
                came = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ShapeError(
                    f"LatentNetwork: {name} must be a tensor of real numbers, got {came}. {_ONE_INPUT}"
                )
            if value.dtype == torch.float64 != self.like.dtype:
                raise ShapeError(
                    f"LatentNetwork: {name} is in double precision, and the network is not. Convert one "
                    f"of them: {name}.to({self.like.dtype}), or network.double()."
                )
        if shift.shape[-1:] != (self.space.num_channels,):
            raise ShapeError(
                f"LatentNetwork, shift: expected {self.space.num_channels} channels on the last axis "
                f"({len(self.layers)} layers), got a tensor of shape {tuple(shift.shape)}. {_ONE_INPUT}"
            )
        self.space.check(scale, "LatentNetwork, scale")
        if shift.shape != scale.shape:
            raise ShapeError(
                "LatentNetwork: shift and scale must have one shape, got "
                f"{tuple(shift.shape)} and {tuple(scale.shape)}."
            )
        device = first_tensor(x).device
        if not shift.device == scale.device == device:
            raise DeviceError(
                f"LatentNetwork: the latents must be where the input is, on {device}, got shift on "
                f"{shift.device} and scale on {scale.device}. Move the guide, or what they are from, "
                f"there: guide.to({str(device)!r})."
            )
        draws = 1 if shift.ndim < 2 else shift.shape[-2]
        examples = 1 if draws == 1 and is_one_piece(x) else num_examples(x)
        if draws not in (1, examples):
            raise ShapeError(
                f"LatentNetwork: the axis before the channels is the example axis, of length 1 or "
                f"{examples} (the batch), got latents of shape {tuple(shift.shape)}. Many draws for "
                "all examples have the shape (samples, 1, channel)."
            )

    def weights(self) -> int:
        """A hash of the weights: of all parameters and buffers but population statistics."""
        return self._watch.weights(self.network)

    def check_statistics(self) -> None:
        """Refuse missing or stale population statistics, whatever the mode.

        Raises:
            StatisticsError: naming the layer and what to do.
        """
        self._watch.check(self.network)


def _refuse_normalization(network: nn.Module) -> None:
    """Plain means plain: a batch normalization left in would change its statistics when it runs."""
    for name, module in normalization_layers(network).items():
        raise ConversionError(
            f"LatentNetwork: plain=True, but {name or 'the network itself'!r} is a normalization "
            f"layer ({type(module).__name__}). Convert the network, pyronorm.convert(network), "
            "and use the guide Point: that is the network as it is."
        )
