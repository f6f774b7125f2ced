"""The unit of the latents where a normalizer does not standardize over the data."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import checked
from pyronorm.errors import DataError, ShapeError

__all__ = ["Standardization"]


class Standardization(nn.Module):
    r"""Means and deviations of :math:`\hat x` over data, which the latents are relative to.

    Where :math:`\hat x` has mean :math:`m` and standard deviation :math:`s` over the data, latents
    that act on :math:`\tilde x = (\hat x - m)/s` give

    .. math::
        m + s \cdot \text{scale}\,(\tilde x + \text{shift}) =
        \text{scale}\,(\hat x + \text{shift}'), \qquad
        \text{shift}' = s \cdot \text{shift} + m\,\Big(\frac{1}{\text{scale}} - 1\Big),

    so that a layer need not know of it. Neutral latents stay neutral.

    Buffers: ``mean`` and ``std``, shape ``(channel,)``; without them, :math:`m = 0` and :math:`s = 1`.

    Args:
        num_channels: of all layers.
        like: gives device and dtype.
    """

    _like: Tensor
    mean: Tensor | None
    std: Tensor | None

    def __init__(self, num_channels: int, like: Tensor) -> None:
        super().__init__()
        self.num_channels = num_channels
        # Empty: it moves with the module, and says where a loaded state belongs.
        self.register_buffer("_like", like.new_empty(0), persistent=False)
        self.register_buffer("mean", None)
        self.register_buffer("std", None)

    @checked
    def set(self, mean: Float[Tensor, " channel"], std: Float[Tensor, " channel"]) -> None:
        """Take means and deviations.

        Args:
            mean: of each channel.
            std: the same; 0 is a channel without noise of the shift.

        Raises:
            ShapeError: if they do not have the channels of the network.
            DataError: if a number is not finite, or a deviation negative.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.num_channels,):
                raise ShapeError(
                    f"Standardization: {name} must have shape ({self.num_channels},), got "
                    f"{tuple(value.shape)}."
                )
        if not bool((mean.isfinite() & std.isfinite() & (std >= 0)).all()):
            raise DataError(
                "Standardization: means and deviations must be finite, and deviations at least 0."
            )
        self.mean, self.std = (value.detach().to(self._like, copy=True) for value in (mean, std))

    def clear(self) -> None:
        """Let the latents be relative to what the normalizers make."""
        self.mean = self.std = None

    def shift(self, shift: Tensor, scale: Tensor) -> Tensor:
        r"""The :math:`\text{shift}'` that the layers add to :math:`\hat x`, of the same shape."""
        if self.mean is None or self.std is None:
            return shift
        return self.mean * (1 / scale - 1) + self.std * shift

    def reference(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        r"""Statistics that latents are relative to, :math:`(\mu + \sigma m, \sigma s)`.

        Args:
            mean: :math:`\mu` of the normalizers.
            std: :math:`\sigma`.
        """
        if self.mean is None or self.std is None:
            return mean, std
        return mean + std * self.mean, std * self.std

    def extra_repr(self) -> str:
        """Show whether there is one."""
        return "none" if self.mean is None else f"{self.num_channels} channels"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Have buffers where the state has some, and none where it has none."""
        for name in ("mean", "std"):
            given = state_dict.get(f"{prefix}{name}")
            old = self._buffers[name]
            if given is None or old is None:
                self._buffers[name] = None if given is None else self._like.new_empty(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
