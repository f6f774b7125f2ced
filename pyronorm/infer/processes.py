"""The processes that train one model together: they decide alike, and end together.

Each process has its part of every batch. What one of them learns and all need (its loss, that it
failed, the statistics of its part of the data) is *exchanged*: every process calls the same function
at the same place. A process that fails says so at its next exchange, so that none waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyronorm.errors import OptionError, ProcessError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Processes"]

_Value = TypeVar("_Value")
_FAILED, _NUMBERS, _VALUES, _FIRST, _MEANS = map(float, range(5))  # what processes meet for


class Processes:
    """The processes of a Lightning Fabric; None, or one process, has nothing to exchange.

    Args:
        fabric: already launched.

    Attributes:
        size: how many there are.
        rank: the number of this one, from 0.

    Raises:
        OptionError: if its processes are not running yet, or its strategy cuts models into parts.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        self.size, self.rank = 1, 0
        self._group: Any = None
        self._silent = False
        self._depth = 0
        if fabric is None:
            return
        _check_strategy(fabric)
        self.size, self.rank = fabric.world_size, fabric.global_rank
        if self.size > 1:
            if not dist.is_initialized():
                raise OptionError(
                    f"fabric: there are to be {self.size} processes, but this one is alone. Call "
                    "fabric.launch() first, and start the program by torchrun."
                )
            self._group = _group()

    def exchange(self, *numbers: float) -> list[list[float]]:
        """The numbers of every process, in the order of the processes.

        Args:
            numbers: at most three.

        Raises:
            ProcessError: if another process failed, with its message.
        """
        if self.size == 1:
            return [list(numbers)]
        return [row[: len(numbers)] for row in self._meet(_NUMBERS, *numbers)]

    def gather(self, value: _Value) -> list[_Value]:
        """A value of every process, of plain types and tensors."""
        if self.size == 1:
            return [value]
        self._meet(_VALUES)
        return self._gather(value)

    def from_first(self, function: Callable[[], _Value]) -> _Value:
        """What a function returns in process 0, which alone calls it."""
        if self.size == 1:
            return function()
        found: list[Any] = [function() if self.rank == 0 else None]
        self._meet(_FIRST)
        dist.broadcast_object_list(found, src=0, group=self._group)
        value: _Value = found[0]
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """Context whose failure in one process ends it in all; contexts nest."""
        self._depth += 1
        try:
            yield
        except ProcessError:
            raise
        except BaseException as error:
            if self.size > 1 and not self._silent:
                self._silent = True  # the contexts around have nothing to add
                self._announce(error)
            raise
        finally:
            self._depth -= 1
            self._silent = self._silent and self._depth > 0

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Context of what other libraries exchange: a failure within cannot be told to the others."""
        try:
            yield
        except BaseException:
            self._silent = True
            raise

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over the processes."""
        if self.size == 1 or not tensors:
            return
        self._meet(_MEANS)
        with self.in_step():
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.size)

    def share_buffers(self, *modules: nn.Module) -> None:
        """Give buffers the values of process 0, such as running means that a layer moved itself."""
        if self.size == 1:
            return
        buffers = [buffer for module in modules for buffer in module.buffers()]
        values = self.from_first(lambda: [buffer.detach().cpu() for buffer in buffers])
        for buffer, value in zip(buffers, values, strict=True):
            if not torch.equal(buffer.detach().cpu(), value):
                buffer.copy_(value)

    def _meet(self, what: float, *numbers: float) -> list[list[float]]:
        """See that no process has failed, and that all are here for the same."""
        rows = self._rows(what, *numbers)
        kinds = {row[0] for row in rows}
        if _FAILED in kinds:
            messages = self._gather(None)
            rank, message = next((r, m) for r, m in enumerate(messages) if m is not None)
            raise ProcessError(f"process {rank} of {self.size} ended with {message}")
        if len(kinds) > 1:
            raise ProcessError(
                "the processes of this run do different things. All have to run the same program, with "
                "arguments of the same kinds."
            )
        return [row[1:] for row in rows]

    def _rows(self, *numbers: float) -> list[list[float]]:
        mine = torch.zeros(4, dtype=torch.float64)
        mine[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            dist.all_gather(parts, mine, group=self._group)
        except RuntimeError as error:  # it was killed, and could not say so
            self._silent = True
            raise ProcessError(f"another process of this run is gone: {error}") from error
        return torch.stack(parts).tolist()

    def _gather(self, value: _Value) -> list[_Value]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _announce(self, error: BaseException) -> None:
        try:
            self._rows(_FAILED)
            self._gather(f"{type(error).__name__}: {error}")
        except Exception:  # the others may be gone, and this error is the one to see
            return


_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # one for each world


def _group() -> Any:
    """The processes connected by Gloo: what is exchanged is on the host, whatever the devices."""
    world = dist.group.WORLD
    if world not in _GROUPS:
        _GROUPS[world] = dist.new_group(backend="gloo")
    return _GROUPS[world]


def _check_strategy(fabric: Fabric) -> None:
    if isinstance(fabric, type) or not hasattr(fabric, "strategy"):
        raise OptionError(
            'fabric: expected a Lightning Fabric, such as Fabric(strategy="ddp", devices=2), got '
            f"{fabric!r}."
        )
    strategy = type(fabric.strategy)
    # By name: Lightning's classes have two homes, lightning_fabric and lightning.fabric.
    known = {"SingleDeviceStrategy", "DDPStrategy"}
    if not known & {kind.__name__ for kind in strategy.__mro__}:
        raise OptionError(
            f"fabric: its strategy is {strategy.__name__}, which takes a model apart. Layers are given "
            "latents from outside and read each other's weights, so every process needs the whole "
            'model: Fabric(strategy="ddp").'
        )
