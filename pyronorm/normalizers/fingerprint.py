"""Fingerprints: has any number in any tensor of a network changed, and in which tensor?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor, nn

from pyronorm.devices import move, refuse_parts

__all__ = ["fingerprint", "named_tensors", "tensors"]

_WIDTH = 4096
_ELEMENTS = {"cpu": 2**16}  # at once, to stay in the cache
_MANY = 2**22  # on other devices, to bound the memory


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that an output can depend on, module by module.

    That is all but counts of batches; one that is shared comes once.
    """
    seen = set()
    for name, module in network.named_modules():
        for key, tensor in _own(module):
            if tensor not in seen:
                seen.add(tensor)
                yield f"{name}.{key}" if name else key, tensor


def tensors(network: nn.Module) -> list[Tensor]:
    """The same tensors, faster and without their names."""
    return list(dict.fromkeys(t for module in network.modules() for _, t in _own(module)))


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None and key != "num_batches_tracked":
            yield key, tensor


@torch.no_grad()
def fingerprint(network: nn.Module) -> dict[str, int]:
    r"""A hash of every parameter and buffer, by name.

    The hash of a tensor with numbers :math:`b_i`, read as 64-bit integers, is
    :math:`\sum_i w_i\,(b_i \oplus \lfloor b_i/2^{32} \rfloor) \bmod 2^{64}` with pseudo-random odd
    :math:`w_i`: it sees where a number stands, any change of one number changes it, and a change of
    several is missed in less than one of :math:`2^{32}` cases. Casts that lose nothing keep it. It is
    the same on every device, and all hashes come to the host in one transfer.
    """
    found = [*named_tensors(network)]
    refuse_parts(found)
    sums: dict[str, Tensor] = {}
    short: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, tensor in found:
        values = _flat(tensor)
        if len(values) <= _WIDTH:
            short.setdefault((values.device, values.dtype), {})[name] = values
        else:
            sums[name] = _hash(values)
    for (device, _), together in short.items():
        sizes = [len(values) for values in together.values()]
        columns = torch.cat([_columns(device)[:size] for size in sizes])
        terms = _bits(torch.cat([*together.values()])) * columns
        # a few kernels for all: differences of running sums, which are exact
        ends = move(torch.tensor([0, *sizes]).cumsum(0), device)
        running = torch.cat([terms.new_zeros(1), terms.cumsum(0)])[ends]
        sums |= zip(together, (running[1:] - running[:-1]).unbind(), strict=True)
    if not found:
        return {}
    device = sums[found[0][0]].device
    hashes = torch.stack([sums[name].to(device) for name, _ in found]).tolist()
    return dict(zip((name for name, _ in found), hashes, strict=True))


def _flat(tensor: Tensor) -> Tensor:
    values = tensor.to_dense() if tensor.layout != torch.strided else tensor
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return values.resolve_neg().reshape(-1)


def _bits(values: Tensor) -> Tensor:
    bits = values.double().view(torch.int64) if values.is_floating_point() else values.long()
    return bits ^ ((bits >> 32) & 0xFFFFFFFF)  # else an even number of signs would cancel


def _hash(values: Tensor) -> Tensor:
    columns = _columns(values.device)
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    most = _ELEMENTS.get(values.device.type, _MANY)
    for start in range(0, len(values), most):
        bits = _bits(values[start : start + most])
        rest = len(bits) % _WIDTH
        full = bits[: len(bits) - rest].view(-1, _WIDTH)
        if len(full):
            rows = _rows(values.device, start // _WIDTH, most // _WIDTH)[: len(full)]
            total = total + ((full * columns).sum(1) * rows).sum()
        if rest:
            total = total + (bits[len(bits) - rest :] * columns[:rest]).sum()
    return total


@lru_cache(maxsize=8)
def _columns(device: torch.device) -> Tensor:
    return _multipliers(_WIDTH, 0, device)


@lru_cache(maxsize=64)
def _rows(device: torch.device, start: int, count: int) -> Tensor:
    return _multipliers(count, _WIDTH + start, device)


def _multipliers(count: int, start: int, device: torch.device) -> Tensor:
    """Pseudo-random odd numbers (the steps of SplitMix64, Steele, Lea & Flood, OOPSLA 2014)."""
    z = (torch.arange(count, device=device) + (start + 1)) * -0x61C8864680B583EB
    z = (z ^ (z >> 30)) * -0x40A7B892E31B1A47
    z = (z ^ (z >> 27)) * -0x6B2FB644ECCEEE15
    return (z ^ (z >> 31)) | 1
