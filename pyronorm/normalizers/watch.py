"""Checks population statistics before a network runs in evaluation mode, whoever calls it."""

from __future__ import annotations

import hashlib
import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.errors import StatisticsError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.fingerprint import fingerprint, named_tensors, tensors
from pyronorm.normalizers.freshness import (
    Stamp,
    batch_layers,
    check_statistics,
    named_batch_layers,
    needs_check,
    stamp_loaded,
)
from pyronorm.normalizers.handover import is_handing_over

__all__ = ["Watch", "unchecked", "verified", "watch"]

_KEYS = itertools.count()
_WATCHES: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()


class Watch:
    """Checks a network's statistics before it runs in evaluation mode, whoever calls it.

    It is one of the network's hooks, and its batch layers know it, for calls that go around the network:
    of some of its layers alone. Tensors are compared with those of the last fingerprint by their version
    counters and places. ``tensor.data`` and other libraries change tensors without counting, so small
    networks on the CPU are compared number by number with a copy, which costs little beside a call;
    others are read by :meth:`check` alone. If anything changed, a new fingerprint decides.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        self._network = None if network is None else weakref.ref(network)
        self._known: _Known | None = None
        self._accepted: tuple[list[Stamp | None], Mapping[str, int]] | None = None
        self._weights: tuple[Mapping[str, int], int] | None = None
        # For compiled code, which calls an operator with these.
        self.key, self.token = next(_KEYS), torch.zeros(())
        _WATCHES[self.key] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        network = self.network
        return Watch(None if network is None else memo.get(id(network)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()

    @property
    def network(self) -> nn.Module | None:
        """The network, as long as it lives."""
        return None if self._network is None else self._network()

    def __call__(self, network: nn.Module, args: Any) -> None:
        """Check before a call that is not a LatentNetwork's, which checks for itself."""
        if is_handing_over():
            return
        if not torch.compiler.is_compiling():
            if self._network is None:
                self._network = weakref.ref(network)
            _STATE.running.add(self)
            if _STATE.unchecked:
                return
        self.before_call(network, batch_layers(network))

    def after_call(self, network: nn.Module, args: Any, output: Any) -> None:
        """Note that the call is over."""
        if not torch.compiler.is_compiling():
            _STATE.running.discard(self)

    def before_call(self, network: nn.Module, layers: Sequence[LatentNorm]) -> None:
        """Check the statistics that a call will use.

        Args:
            network: the network.
            layers: those of its layers that may take statistics over the batch.

        Raises:
            StatisticsError: if they are missing or stale.
        """
        if torch.compiler.is_compiling():
            if _needs_operator(network, layers):
                torch.ops.pyronorm.check_statistics(self.token, self.key)
            return
        if _STATE.unchecked or network in _STATE.verified:
            return
        if needs_check(layers):
            self._check(network, layers, read=False)

    def before_layer(self, layer: LatentNorm) -> None:
        """Check before a layer runs in evaluation mode.

        Within a call of the network nothing is left to check. Who runs a part of the network uses
        statistics that depend on the rest too, so that all of it is checked; the layer alone, if the
        network is gone.

        Raises:
            StatisticsError: if its statistics are missing or stale.
        """
        if layer.unused:
            raise StatisticsError(
                f"{layer.name}: it has no population statistics, since it did not run when they were "
                "estimated. Call pyronorm.estimate_population_statistics with data for which it does."
            )
        if torch.compiler.is_compiling() or is_handing_over() or _STATE.running:
            return
        network = self.network
        if network is None or all(layer is not module for module in network.modules()):
            network = layer
        self.before_call(network, [layer])

    def check(self, network: nn.Module) -> None:
        """Check the statistics, whatever the mode.

        Raises:
            StatisticsError: if they are missing or stale.
        """
        if layers := batch_layers(network):
            self._check(network, layers, read=True)

    def weights(self, network: nn.Module) -> int:
        """A hash of all parameters and buffers but those that normalizers keep.

        Args:
            network: the network.

        Returns:
            A number between 1 and ``2**63 - 1``.
        """
        hashes = self._fingerprint(network, read=True)
        if hashes is None:
            return _weights(network, fingerprint(network))
        if self._weights is None or self._weights[0] is not hashes:
            self._weights = hashes, _weights(network, hashes)
        return self._weights[1]

    def _check(self, network: nn.Module, layers: Sequence[LatentNorm], read: bool) -> None:
        present = self._fingerprint(network, read)
        if present is None:
            return
        stamps = [layer.statistics_stamp for layer in layers]
        accepted = self._accepted
        if accepted is not None and accepted[1] is present and accepted[0] == stamps:
            return
        check_statistics(network, present)
        self._accepted = stamps, present

    def _fingerprint(self, network: nn.Module, read: bool) -> Mapping[str, int] | None:
        """The fingerprint now; None where it cannot be had."""
        values = tensors(network)
        try:
            places = [(id(value), value.data_ptr()) for value in values]
        except (RuntimeError, NotImplementedError):
            return None  # weights that a function transform gave: they are the caller's arguments
        if is_capturing() or any(value.is_meta for value in values):
            return None
        known, versions = self._known, _versions(values)
        if known is None or not known.is_as(places, versions, read):
            known = self._known = _Known(places, versions, values, fingerprint(network))
        return known.hashes


def _weights(network: nn.Module, hashes: Mapping[str, int]) -> int:
    statistics = {
        f"{name}.{key}" if name else key
        for name, layer in network.named_modules()
        if isinstance(layer, LatentNorm)
        for key in layer.normalizer.buffers(layer.num_channels)
    }
    kept = [(name, value) for name, value in hashes.items() if name not in statistics]
    digest = hashlib.sha256(repr(kept).encode()).digest()
    return max(1, int.from_bytes(digest[:8]) >> 1)


class _Known:
    """What a network held when its fingerprint was taken."""

    def __init__(
        self,
        places: list[tuple[int, int]],
        versions: list[int] | None,
        values: list[Tensor],
        hashes: Mapping[str, int],
    ) -> None:
        self.places, self.versions, self.hashes = places, versions, hashes
        self.flat: dict[torch.dtype, list[Tensor]] = {}
        if sum(v.numel() for v in values) <= _SMALL and all(map(_is_plain, values)):
            for value in values:  # whatever the order of axes
                flat = value.detach().as_strided((value.numel(),), (1,))
                self.flat.setdefault(flat.dtype, []).append(flat)
        self._copies = self._contents()

    def is_as(self, places: list[tuple[int, int]], versions: list[int] | None, read: bool) -> bool:
        """Whether the tensors are these and hold what they held, as far as that is looked at."""
        if places != self.places or versions != self.versions:
            return False
        if self.flat:
            return all(map(torch.equal, self._contents(), self._copies))
        return versions is not None and not read

    @torch.no_grad()
    def _contents(self) -> list[Tensor]:
        return [torch.cat(v).view(_BITS.get(t.itemsize, t)) for t, v in self.flat.items()]


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALL = 2**22  # numbers of which a copy is kept


def _is_plain(value: Tensor) -> bool:
    """Whether its numbers lie one after the other in the memory of the CPU."""
    if value.device.type != "cpu" or value.layout != torch.strided:
        return False
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.ndim)
    return value.is_contiguous() or (last is not None and value.is_contiguous(memory_format=last))


def _versions(values: list[Tensor]) -> list[int] | None:
    """The counters of changes; None where tensors have none (those of inference mode)."""
    try:
        return [value._version for value in values]
    except RuntimeError:
        return None


class _State(threading.local):
    def __init__(self) -> None:
        self.verified: tuple[nn.Module, ...] = ()
        self.unchecked = False
        # Watches of networks that are being called. One that failed stays until its next call.
        self.running: weakref.WeakSet[Watch] = weakref.WeakSet()


_STATE = _State()


@contextmanager
def verified(network: nn.Module) -> Iterator[None]:
    """Context in which nothing changes the network: checked now, and at no call within, in this thread.

    Raises:
        StatisticsError: if statistics are missing or stale.
    """
    watch(network).check(network)
    before = _STATE.verified
    _STATE.verified = (*before, network)
    try:
        yield
    finally:
        _STATE.verified = before


@contextmanager
def unchecked() -> Iterator[None]:
    """Context, or decorator, in which calls of this thread are only looked at, for shapes and order."""
    before, _STATE.unchecked = _STATE.unchecked, True
    try:
        yield
    finally:
        _STATE.unchecked = before


def watch(network: nn.Module) -> Watch:
    """Have statistics checked, follow loaded state dicts, and be marked in saved ones if stale."""
    for hook in network._forward_pre_hooks.values():
        if isinstance(hook, Watch):
            return hook
    found = Watch(network)
    for layer in batch_layers(network):
        layer.watch = found
    network.register_forward_pre_hook(found)
    network.register_forward_hook(found.after_call)
    if _after_loading not in network._load_state_dict_post_hooks.values():
        network.register_load_state_dict_post_hook(_after_loading)
        network.register_state_dict_post_hook(_after_saving)
    return found


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    # A file without some of the tensors does not say for which weights its statistics are.
    missing = incompatible_keys.missing_keys
    own = [name for name, _ in named_tensors(module)]
    if not any(key == name or key.endswith(f".{name}") for key in missing for name in own):
        stamp_loaded(module)


def _after_saving(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    # Who loads this file could not know that its statistics are of other weights.
    layers = [(n, m) for n, m in named_batch_layers(module) if m.statistics_stamp is not None]
    if not layers:
        return
    try:
        watch(module).check(module)
    except StatisticsError:
        for name, _ in layers:
            key = f"{prefix}{name}.num_batches_tracked" if name else f"{prefix}num_batches_tracked"
            if key in state:
                state[key] = torch.zeros_like(state[key])


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured, which must not wait for the device."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _needs_operator(network: nn.Module, layers: Sequence[LatentNorm]) -> bool:
    """Whether compiled code checks. On a GPU an operator that writes would keep it from CUDA graphs."""
    if _IS_EXPORTING is None or _IS_EXPORTING():
        return False
    first = next(itertools.chain(network.parameters(), network.buffers()), None)
    return (
        first is not None
        and first.device.type == "cpu"
        and any(layer.normalizer.uses_batch and not layer.training for layer in layers)
    )


def _check_by_key(token: Tensor, key: int) -> None:
    found = _WATCHES.get(key)
    network = None if found is None else found.network
    if found is not None and network is not None:
        found.before_call(network, batch_layers(network))


_IS_EXPORTING = getattr(torch.compiler, "is_exporting", None)  # from torch 2.7 on

# It says that it writes the token, else compilers would leave out what has no result.
_OPERATORS = torch.library.Library("pyronorm", "DEF")
_OPERATORS.define("check_statistics(Tensor(a!) token, int key) -> ()")
_OPERATORS.impl("check_statistics", _check_by_key, "CompositeExplicitAutograd")
torch.library.register_fake("pyronorm::check_statistics", lambda token, key: None)
