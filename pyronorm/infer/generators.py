"""The random number generators that training draws from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyronorm.infer.targets import loader_of
from pyronorm.randomness import Seed, seed_value

__all__ = [
    "Generators",
    "device_state",
    "kept_order",
    "order_generators",
    "replayed",
    "set_device_state",
]


class Generators:
    """States of the generators of Python, NumPy and torch (CPU and one device) from call to call.

    With a seed they are generators of training's own, in force within :meth:`use`, and the user's are
    as they were afterwards. Without one, training draws from the user's generators.

    Args:
        seed: what to start from; None for the user's own generators.
        device: the device that is drawn on.
        rank: the number of this process; each has a stream of its own, and 0 that of the seed.
    """

    def __init__(self, seed: Seed, device: torch.device, rank: int = 0) -> None:
        self._device = device
        self._state: dict[str, Any] | None = None
        self._in_use = False
        if seed is not None:
            users = capture(device)
            value = _own(seed_value(seed), rank)
            random.seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002 - the generator of users' augmentations
            torch.default_generator.manual_seed(value)
            if device.type != "cpu":
                _backend(device).manual_seed(value)
            self._state = capture(device)
            restore(users, device)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Context in which these generators are in force."""
        if self._state is None:
            yield
            return
        users = capture(self._device)
        restore(self._state, self._device)
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False
            self._state = capture(self._device)
            restore(users, self._device)

    def state(self) -> dict[str, Any]:
        """The present states."""
        own = self._state is not None and not self._in_use
        return self._state if own and self._state is not None else capture(self._device)

    def restore(self, state: dict[str, Any]) -> None:
        """Put states of :meth:`state` back."""
        if self._state is not None and not self._in_use:
            self._state = state
        else:
            restore(state, self._device)


def capture(device: torch.device) -> dict[str, Any]:
    """The states of the generators of Python, NumPy and torch, of plain types and tensors."""
    numbers: Any = np.random.get_state()  # noqa: NPY002
    name, key, position, has_gauss, gauss = numbers
    version, internal, gauss_next = random.getstate()
    state = {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(name), torch.from_numpy(key.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = device_state(device)
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Put the states of :func:`capture` back."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, key, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type != "cpu":
        set_device_state(device, state["device"])


def device_state(device: torch.device) -> Tensor:
    """The state of a device's generator, of the CPU's too."""
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = _backend(device).get_rng_state(*_which(device))
    return state


def set_device_state(device: torch.device, state: Tensor) -> None:
    """Put a state of :func:`device_state` back."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        _backend(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    # Apple's backend has one device, and no argument for it.
    return () if device.index is None or device.type == "mps" else (device,)


@contextmanager
def replayed(device: torch.device) -> Iterator[Callable[[], None]]:
    """Context with a function that takes torch's generators back to where the context began."""
    state = capture(device)
    yield lambda: restore(state, device)


def order_generators(batches: Any) -> list[torch.Generator]:
    """The generators that a loader's order comes from, where they are not torch's own."""
    loader = loader_of(batches)
    if loader is None:
        return []
    samplers = [loader.sampler, loader.batch_sampler]
    samplers += [getattr(sampler, "sampler", None) for sampler in samplers]
    found = [getattr(part, "generator", None) for part in [loader, *samplers]]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


@contextmanager
def kept_order(batches: Any) -> Iterator[None]:
    """Context after which the generators of a loader's order are as they were."""
    generators = order_generators(batches)
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _own(seed: int, rank: int) -> int:
    if rank == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0]) >> 1


def _backend(device: torch.device) -> Any:
    return getattr(torch, device.type)
