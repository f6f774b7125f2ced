"""Many draws of the latents at once: draws folded into the axis of examples.

An example under a draw is a *row*. A network whose rows do not depend on each other takes the rows of
several draws as one batch, with latents for each row: as many kernels as for one draw, under autocast
and in any memory format. Whether rows are independent is found out by a try on a few of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyronorm.devices import available_memory
from pyronorm.inputs import first_tensor, is_one_piece, map_tensors, num_examples, tensors_of
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.handover import Seen, handed_over
from pyronorm.normalizers.kernels import full_precision, under_autocast
from pyronorm.randomness import seeded

if TYPE_CHECKING:
    from pyronorm.latents.network import LatentNetwork

__all__ = ["Folding", "called", "compiled_calls"]

# Bytes of the largest activation of a call. On a CPU that is what the caches hold: fewer rows cost
# calls, more cost trips to memory (measured: benchmarks/predict.py). A GPU wants to be filled.
_CPU_BYTES = 2**21  # for each thread
_CPU_THREADS = 16  # that count at most; more than two are not measured
_GPU_BYTES = 2**30  # 64 draws of ResNet-18 at 64 images in float32; not measured on a GPU
_ALIVE = 8  # such activations at once, of a convolution with a shortcut and what its kernel needs
_FEWEST = 16  # examples, unless there are fewer: cutting a batch further does not pay

# How far rows may be from what they are alone, in units of the differences between rows, for rounding.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}

# What shows values to Python, which may then go another way: for all rows of a call.
_READING = {
    *("item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__"),
    *("__contains__", "equal", "allclose", "is_nonzero", "nonzero", "argwhere", "masked_select"),
    *("unique", "unique_consecutive", "bincount", "cpu"),
}


@dataclass(frozen=True)
class _Way:
    """How a network takes several draws.

    Attributes:
        layout: of inputs with two spatial axes; None as they are.
        growth: numbers of the largest activation for each number of the input.
    """

    layout: torch.memory_format | None
    growth: float

    def rows(self, x: Any) -> int:
        """How many rows a call may have."""
        tensor = first_tensor(x)
        device = tensor.device
        threads = min(torch.get_num_threads(), _CPU_THREADS)
        size = _CPU_BYTES * threads if device.type == "cpu" else _GPU_BYTES
        # What fits into the caches of a CPU fits into its memory.
        available = None if device.type == "cpu" else available_memory(device)
        if available is not None:
            size = min(size, available // _ALIVE)
        mixed = under_autocast(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else tensor.dtype
        each = max(1.0, self.growth * _numbers(x) / num_examples(x))
        return int(size // (each * max(2, dtype.itemsize)))

    def laid_out(self, x: Any) -> Any:
        layout = self.layout
        if layout is None:
            return x
        return map_tensors(lambda t: t.contiguous(memory_format=layout) if t.ndim == 4 else t, x)


class Folding:
    """How one network's draws are evaluated; it remembers what it found out."""

    def __init__(self) -> None:
        self._known: tuple[Hashable, _Way | None] | None = None

    def evaluate(self, network: LatentNetwork, x: Any, shift: Tensor, scale: Tensor) -> Tensor:
        """Evaluate a network for many draws: folded where it can be, else one after the other.

        Args:
            network: the network.
            x: inputs.
            shift: shape ``(sample, 1 or batch, channel)``.
            scale: of the same shape.

        Returns:
            Shape ``(sample, batch, *out)``.
        """
        way = None if network.samples_per_call == 1 else self._way(network, x, shift, scale)
        if way is None:
            pairs = zip(shift, scale, strict=True)
            return torch.stack([network._evaluate_one(x, *pair) for pair in pairs])
        examples = num_examples(x)
        size, together = examples, network.samples_per_call
        if together is None:
            rows = way.rows(x)
            together = max(1, rows // examples)
            if rows < examples:
                size = -(-examples // -(-examples // max(rows, _FEWEST)))  # parts of one size
        parts = []
        for start in range(0, examples, size):
            some = slice(start, start + size)
            here = [p if p.shape[1] == 1 else p[:, some] for p in (shift, scale)]
            mine = way.laid_out(map_tensors(lambda tensor: tensor[some], x))  # noqa: B023
            parts.append(_folded(network, way, mine, here[0], here[1], together))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _way(self, network: LatentNetwork, x: Any, shift: Tensor, scale: Tensor) -> _Way | None:
        if is_one_piece(x) or not num_examples(x) or _is_transformed(x, shift, scale):
            return None
        modules = tuple(network.network.modules())
        if any(map(_joins_rows, modules)):
            return None
        key = (
            tuple((id(module), module.training) for module in modules),
            tuple((name, t.dtype, t.ndim, t.device) for name, t in tensors_of(x).items()),
            min(2, num_examples(x)),
        )
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        few = map_tensors(lambda t: torch.cat([t[:1], t[-1:]]) if len(t) > 1 else t, x)
        way: _Way | None = None
        try:
            for layout in _layouts(modules, few):
                way = _tried(network, few, shift[0, :1], scale[0, :1], layout)
                if way is not None:
                    break
        except _UndecidedError:
            return None
        self._known = key, way
        return way


def _folded(
    network: LatentNetwork, way: _Way, x: Any, shift: Tensor, scale: Tensor, together: int
) -> Tensor:
    """Evaluate so many draws at once."""
    examples = num_examples(x)
    together = min(together, len(shift))
    rows = x if together == 1 else way.laid_out(map_tensors(lambda t: _repeated(t, together), x))
    outputs = []
    for a, b in zip(shift.split(together), scale.split(together), strict=True):
        if len(a) == 1:
            outputs.append(network._evaluate_one(x, a[0], b[0])[None])
            continue
        number = len(a) * examples
        mine = rows if len(a) == together else map_tensors(lambda t: t[:number], rows)  # noqa: B023
        each = [p.expand(-1, examples, -1).flatten(0, 1) for p in (a, b)]
        outputs.append(called(network, mine, *each).unflatten(0, (len(a), examples)))
    return torch.cat(outputs)


def called(network: LatentNetwork, x: Any, shift: Tensor, scale: Tensor) -> Tensor:
    """Call a network with latents of shape (channel,) or (batch, channel): compiled, if it is to be."""
    if not _STATE.compiled:
        return network._evaluate(x, shift, scale)
    # Compiled code is kept with the function, and found again.
    compiled: Any = torch.compile(network._evaluate)
    found: Tensor = compiled(x, shift, scale)
    return found


class _State(threading.local):
    def __init__(self) -> None:
        self.compiled = False


_STATE = _State()


@contextmanager
def compiled_calls(compile: bool = True) -> Iterator[None]:  # noqa: A002
    """Context in which networks are compiled (``torch.compile``) for their many draws, in this thread.

    Args:
        compile: whether they are.
    """
    before, _STATE.compiled = _STATE.compiled, compile
    try:
        yield
    finally:
        _STATE.compiled = before


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor.expand(times, *tensor.shape).flatten(0, 1)


def _numbers(x: Any) -> Any:
    return sum(tensor.numel() for tensor in tensors_of(x).values())


def _joins_rows(module: nn.Module) -> bool:
    """Whether a module takes statistics over the rows of a call."""
    if isinstance(module, LatentNorm):
        return module.training and module.normalizer.uses_batch
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.training or module.running_mean is None
    return False


def _is_transformed(*values: Any) -> bool:
    """Whether tensors are a transform's (``torch.func``), or have no values."""
    try:
        for value in values:
            for tensor in tensors_of(value).values():
                tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return True
    return False


def _layouts(modules: tuple[nn.Module, ...], x: Any) -> tuple[torch.memory_format | None, ...]:
    """The memory formats to try, the better one first: on a CPU convolutions want channels innermost.

    Rows are copied anyway. With channels apart, every convolution would rearrange them twice.
    """
    tensor = first_tensor(x)
    fast = (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and any(isinstance(m, nn.Conv2d) for m in modules)
    )
    return (torch.channels_last, None) if fast else (None,)


class _UndecidedError(Exception):
    """What a try has shown means nothing."""


class _ReadsError(Exception):
    """Values decide what Python does."""


class _NoReading(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READING or (name == "__getitem__" and _is_mask(args[1])):
            raise _ReadsError
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


@torch.no_grad()
def _tried(
    network: LatentNetwork, x: Any, shift: Tensor, scale: Tensor, layout: torch.memory_format | None
) -> _Way | None:
    """Compare rows of two draws in one call with the draws in calls of their own.

    Args:
        network: the network.
        x: two examples, or one.
        shift: a draw, shape ``(1, channel)``.
        scale: of the same shape.
        layout: the memory format for the one call.

    Returns:
        None if they differ, or the network cannot be called so.
    """
    # The second draw is another one, whatever was given. Its rows are more, so that what joins rows
    # joins other ones than it would without the first.
    wave = torch.arange(shift.shape[-1], device=shift.device, dtype=shift.dtype)
    shifts = torch.cat([shift, shift + 0.2 * wave.cos()])
    scales = torch.cat([scale, scale * torch.exp(0.2 * wave.sin())])
    examples, seen = num_examples(x), Seen()
    rows = map_tensors(lambda t: torch.cat([t[:1], t]), x)
    way = _Way(layout, 1.0)
    try:
        with (
            seeded(0, shift),
            full_precision(shift),
            compiled_calls(False),
            handed_over({}, seen=seen),
            _NoReading(),
        ):
            alone = [network._evaluate_one(x, s, c) for s, c in zip(shifts, scales, strict=True)]
            latents = (torch.cat([p[:1], p[1:].expand(examples, -1)]) for p in (shifts, scales))
            found = network._evaluate(way.laid_out(rows), *latents)
    except Exception:  # whatever it is: if it is not about the rows, it comes again
        return None
    expected = torch.cat([alone[0][:1], alone[1]])
    if found.shape != expected.shape or len(expected) != 1 + examples:
        return None
    tolerance = _TOLERANCE.get(expected.dtype, 0.1)
    apart = (expected.amax(0) - expected.amin(0)).max()
    rounding = 64 * torch.finfo(expected.dtype).eps * expected.abs().max()
    close = (found - expected).abs().max() <= tolerance * apart + rounding
    if not bool(expected.isfinite().all()):
        raise _UndecidedError
    return _Way(layout, seen.largest / max(1, _numbers(rows))) if bool(close) else None
