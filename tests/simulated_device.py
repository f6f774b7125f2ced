"""A device for tests without one: tensors that lie elsewhere, and hold real values.

Its tensors report torch's device ``meta``. Inside ``SimulatedDevice()`` every operation is computed on
the CPU after a check of the devices as CUDA makes it: what mixes devices fails, what reads values on
the host or copies to or from it makes the host wait, and is counted. torch's FakeTensor has no
values, so it cannot run code that looks at them.

What it does not show: kernels that a device lacks, rounding, and how long anything takes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

# Operations whose result or error is known only when the device is done.
_WAITING = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "histc"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
    *("_linalg_check_errors", "_linalg_eigh", "_linalg_svd"),
}

# Operations that take tensors of both places: copies, and host indices of device tensors.
_MIXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "lift_fresh"}

# Most operations take a number that lies on the host, as a tensor without axes; these do not.
_STRICT = {
    *("cat", "stack", "index_select", "gather", "scatter", "index_add", "index_add_", "embedding"),
    *("mm", "bmm", "addmm", "convolution", "native_batch_norm", "equal", "searchsorted"),
}


_FREE = {"detach", "_unsafe_view", "lift_fresh", "alias", "expand"}


class MixedDevicesError(RuntimeError):
    """What CUDA would refuse."""


class DeviceTensor(Tensor):
    """A tensor on the simulated device; ``value`` is where it really is."""

    value: Tensor
    is_meta = False  # that says a tensor has no values

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor) -> DeviceTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        self.value = value
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise MixedDevicesError(f"{func} outside of SimulatedDevice().")  # the mode comes first

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.value!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else self.cpu(), spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a device tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.value.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError("only leaves of the graph can be copied deeply")
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copy, self.requires_grad) if is_parameter else copy
        return memo[id(self)]


class SimulatedDevice(TorchDispatchMode):
    """The time in which the device exists.

    Attributes:
        waits: how often the host waited for the device, by what for and where in the code.
        kernels: how often the device computed something, by operation; views and empty tensors are
            free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()

    def __enter__(self) -> SimulatedDevice:
        self._stack = ExitStack()
        # module.to(device) keeps the identity of parameters on CUDA, and so only here
        future = torch.__future__
        swap = future.get_swap_module_params_on_conversion()
        self._stack.callback(future.set_swap_module_params_on_conversion, swap)
        future.set_swap_module_params_on_conversion(True)
        self._stack.enter_context(mock.patch.object(torch.utils, "swap_tensors", _swap))
        self._stack.enter_context(mock.patch.object(torch, "meta", _BACKEND, create=True))
        self._stack.enter_context(_Constructors())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, DeviceTensor)]
        if name == "prim::device":
            return DEVICE
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, args, kwargs)
        there = bool(ours)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]) == DEVICE
            kwargs = {**kwargs, "device": torch.device("cpu")}
        generator = kwargs.get("generator")
        if there and generator is not None and generator.device != DEVICE:
            raise MixedDevicesError(f"{name}: the generator is on the {generator.device}.")
        if ours:
            self._check(name, args, tensors)
        if there and not _is_free(func):
            self.kernels[name] += 1
        args, kwargs = tree_map(_value, (args, kwargs))
        return _handed_back(func, args, kwargs, func(*args, **kwargs), tensors, there)

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        host = [x for x in tensors if not isinstance(x, DeviceTensor)]
        if name in _MIXING:
            self._check_index(name, args)
        elif any(x.ndim > 0 or name in _STRICT for x in host):
            shapes = [tuple(x.shape) for x in host]
            raise MixedDevicesError(
                f"{name}: all tensors must be on one device, but those of shape {shapes} are on the "
                "cpu."
            )
        if name in _WAITING:
            self._wait(name)

    def _check_index(self, name: str, args: Any) -> None:
        if name == "lift_fresh":
            return
        target, index, *values = args
        for part in index:
            if not isinstance(target, DeviceTensor) and isinstance(part, DeviceTensor):
                raise MixedDevicesError(
                    f"{name}: a tensor on the cpu, and its index on the device."
                )
            if isinstance(target, DeviceTensor) and part is not None:
                if not isinstance(part, DeviceTensor):
                    self._wait("to the device: index")
                if part.dtype in (torch.bool, torch.uint8):
                    self._wait("nonzero of a mask")
        for value in (x for x in values if isinstance(x, Tensor) and x.ndim > 0):
            if isinstance(value, DeviceTensor) != isinstance(target, DeviceTensor):
                raise MixedDevicesError(f"{name}: target and values are on two devices.")

    def _copy(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Tensor:
        source = args[-1] if name == "_to_copy" else args[1]
        there = isinstance(args[0], DeviceTensor)
        if name == "_to_copy" and kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]) == DEVICE
            kwargs = {**kwargs, "device": torch.device("cpu")}
        non_blocking = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        if isinstance(source, DeviceTensor) != there and not non_blocking:
            self._wait("to the device" if there else "to the host")
        self.kernels[name] += there or isinstance(source, DeviceTensor)
        output = func(*tree_map(_value, args), **kwargs)
        if name == "copy_":
            return args[0]
        return DeviceTensor(output) if there else output

    def _wait(self, what: str) -> None:
        self.waits[what, _place()] += 1


# torch.cuda's part in seeding: the device draws from the generator of the CPU, so that the same seed
# gives the same draws in both places.
_BACKEND = SimpleNamespace(
    get_rng_state=lambda device=None: torch.get_rng_state(),
    set_rng_state=lambda state, device=None: torch.set_rng_state(state),
    manual_seed=torch.default_generator.manual_seed,
    current_device=lambda: 0,
    device=lambda index: nullcontext(),
)


class _Constructors(TorchFunctionMode):
    """Tensors made from Python's values are made on the host and copied, as on CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("tensor", "as_tensor", "asarray") and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            if isinstance(args[0], Tensor):
                return args[0].to(device=device, dtype=kwargs.get("dtype"))
            return func(*args, **kwargs).to(device)
        if name == "new_tensor" and isinstance(args[0], DeviceTensor):
            if isinstance(args[1], Tensor):
                return args[1].detach().clone()
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], DeviceTensor):
            index = args[1]
            parts = tuple(map(_as_index, index)) if isinstance(index, tuple) else _as_index(index)
            args = (args[0], parts, *args[2:])
        return func(*args, **kwargs)


def _as_index(part: Any) -> Any:
    return torch.tensor(part) if isinstance(part, list) else part


def _swap(a: Tensor, b: Tensor) -> None:
    """As torch.utils.swap_tensors, weak references or not: Pyro's stay with the parameter."""
    if a is not b:
        a.__class__, b.__class__ = b.__class__, a.__class__
        a.__dict__, b.__dict__ = b.__dict__, a.__dict__
        torch._C._swap_tensor_impl(a, b)


def _is_free(func: Any) -> bool:
    """Whether an operation computes nothing."""
    name = func._schema.name.removeprefix("aten::")
    made = name.removeprefix("new_").partition("_")[0] == "empty"
    views = (x.alias_info for x in func._schema.returns)
    return made or name in _FREE or any(x is not None and not x.is_write for x in views)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, DeviceTensor) else x


def _handed_back(
    func: Any, args: Any, kwargs: Any, output: Any, tensors: list[Tensor], there: bool
) -> Any:
    """The output as tensors of the device; what was written in place is the tensor it was."""
    known = {id(_value(tensor)): tensor for tensor in tensors}
    written = set()
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            written |= {id(x) for x in tree_leaves(given)}

    def back(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in written:
            return known[id(x)]
        return DeviceTensor(x) if there else x

    return tree_map(back, output)


def _place() -> str:
    """The line of this library that is running, and the line of Pyro or Fabric that it called."""
    frame, inner = sys._getframe(2), ""
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in ("pyronorm", "pyro", "lightning_fabric"):
            line = f"{frame.f_globals['__name__']}:{frame.f_lineno}"
            if package == "pyronorm":
                return f"{line} {inner}".rstrip()
            inner = inner or f"({line})"
        frame = frame.f_back
    return inner
