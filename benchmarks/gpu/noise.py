"""The same random draws on every device and in every precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SameNoise(TorchFunctionMode):
    """Standard normal and gamma draws come from one generator on the CPU, in float64.

    Generators of a GPU and of the CPU differ, and so do those of float32 and float64, so two runs
    can be compared only with draws that are handed over. Gradients pass through as they do without.

    Args:
        seed: of the generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Draw in the place of torch; everything else goes its way."""
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_ and len(args) == 1 and not kwargs:
            return args[0].copy_(self._normal(args[0].shape, args[0]))
        if func is torch.randn_like:
            return self._normal(args[0].shape, args[0])
        if func is torch._standard_gamma:
            (concentration,) = args
            precise = concentration.double().cpu()
            return torch._standard_gamma(precise, generator=self.generator).to(concentration)
        return func(*args, **kwargs)

    def _normal(self, shape: torch.Size, like: Tensor) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(like)
