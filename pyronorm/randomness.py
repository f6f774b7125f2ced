"""Seeds: how everything that draws takes one and leaves the user's generators alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor

from pyronorm.checks import Range
from pyronorm.errors import OptionError

__all__ = ["Seed", "SeedNumber", "seed_value", "seeded"]

SeedNumber = Annotated[int, Range("an integer between 0 and 2**63 - 1", 0, 2**63 - 1)]
"""A seed as a number."""

Seed = SeedNumber | torch.Generator | None
"""A seed, a generator that the seed is drawn from, or None for torch's own generators as they are."""

_LOCK = threading.RLock()


@contextmanager
def seeded(seed: Seed, *places: Tensor | torch.device) -> Iterator[None]:
    """Context in which torch (and so Pyro) draws from generators of its own.

    With a seed, the generators of the CPU and of the given devices start there and are put back
    afterwards: the user's random numbers are as if nothing had been drawn. A generator gives one
    number, the seed, and moves on by that. None changes nothing: what is drawn moves torch's
    generators, as for any torch function.

    Args:
        seed: a number between ``0`` and ``2**63 - 1``, a generator, or None.
        places: devices that are drawn on, or tensors that lie there.

    Raises:
        OptionError: if ``seed`` is none of these.
    """
    with _LOCK:
        if seed is None:
            yield
        else:
            with _started(seed, places):
                yield


@contextmanager
def _started(
    seed: int | torch.Generator, places: tuple[Tensor | torch.device, ...]
) -> Iterator[None]:
    value = seed_value(seed)
    devices = {p.device if isinstance(p, Tensor) else torch.device(p) for p in places}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))  # the CPU's
        torch.default_generator.manual_seed(value)  # torch.manual_seed would seed every device
        for device in devices:
            module: Any = getattr(torch, device.type, None)
            if device.type != "cpu" and hasattr(module, "get_rng_state"):
                index = module.current_device() if device.index is None else device.index
                stack.enter_context(torch.random.fork_rng(devices=[index], device_type=device.type))
                with module.device(index):
                    module.manual_seed(value)
        yield


def seed_value(seed: Seed) -> int:
    """The number that a seed starts generators with.

    Args:
        seed: the number itself; a generator, which gives one and moves on by that; or None, for one of
            torch's own generator.

    Raises:
        OptionError: if ``seed`` is none of these, or out of range.
    """
    if seed is None:
        return int(torch.randint(2**63 - 1, ()))
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=seed, device=seed.device))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise OptionError(
            "seed: expected an integer between 0 and 2**63 - 1, a torch.Generator, or None, got "
            f"{seed!r}."
        )
    return seed
