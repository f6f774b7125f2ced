"""Do the population statistics belong to the weights as they are now?

Population statistics are estimated for one set of weights. Training on makes them stale, and a
network evaluated with stale statistics is silently wrong. So each layer that keeps them carries a
*stamp*: the fingerprint of all parameters and buffers of the network, itself included, at the time
of the estimate. A stamp is compared with the present fingerprint before the statistics are used.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyronorm.devices import read_together
from pyronorm.errors import StatisticsError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.fingerprint import fingerprint, named_tensors, tensors
from pyronorm.normalizers.handover import is_handing_over

__all__ = [
    "NEVER_RAN",
    "Stamp",
    "Watch",
    "batch_layers",
    "check_statistics",
    "invalidate_statistics",
    "kept_statistics",
    "needs_check",
    "stamp_statistics",
    "trust_statistics",
    "unchecked",
    "verified",
    "watch",
]

_FIX = (
    "Call pyronorm.estimate_population_statistics(network, train_data); or, if they are right, "
    "pyronorm.trust_statistics(network)."
)

_KEPT: ContextVar[frozenset[LatentNorm]] = ContextVar("kept", default=frozenset())


NEVER_RAN = -1
"""In place of a number of batches: the layer did not run when statistics were estimated."""


@dataclass(frozen=True, eq=False)
class Stamp:
    """The network that a layer's statistics belong to.

    Attributes:
        layer: the layer's name in it.
        hashes: a hash of each parameter and buffer, by name.
    """

    layer: str
    hashes: Mapping[str, int]


def batch_layers(network: nn.Module) -> list[LatentNorm]:
    """The layers whose statistics are taken over the batch in training mode."""
    return [m for m in network.modules() if isinstance(m, LatentNorm) and m.normalizer.uses_batch]


def stamp_statistics(network: nn.Module) -> None:
    """Declare that existing population statistics belong to the present parameters.

    Layers that never saw a batch (``num_batches_tracked`` is 0) have none, and stay without.

    Args:
        network: a converted network; only the stamps of its layers change.
    """
    hashes = fingerprint(network)
    layers = _named_batch_layers(network)
    counts = read_together([layer.state("num_batches_tracked") for _, layer in layers])
    for (name, layer), count in zip(layers, counts, strict=True):
        layer.statistics_stamp = Stamp(name, hashes) if count > 0 else None
        layer.unused = count == NEVER_RAN


def trust_statistics(network: nn.Module) -> None:
    """Accept the population statistics as they are, even if nothing shows that they are current.

    For weights that were changed on purpose without making the statistics wrong (rounded to half
    precision, a new head behind the last batch normalization, statistics written by hand).

    Args:
        network: a converted network, a LatentNetwork or a NormalizationModel.
    """
    for layer in batch_layers(network):
        count = layer.state("num_batches_tracked")
        count.masked_fill_(count == 0, 1)
    stamp_statistics(network)


def invalidate_statistics(network: nn.Module, keep: Collection[LatentNorm] = ()) -> None:
    """Mark the population statistics as missing; a state dict saved from now on says so too.

    Args:
        network: a converted network.
        keep: layers whose statistics stay right, because nothing before them changes.
    """
    for layer in batch_layers(network):
        if layer in keep:
            continue
        layer.statistics_stamp, layer.unused = None, False
        layer.state("num_batches_tracked").zero_()


@contextmanager
def kept_statistics(layers: Collection[LatentNorm]) -> Iterator[None]:
    """Context in which the statistics of some layers are right although other parts change.

    Args:
        layers: in evaluation mode, with nothing before them that changes.
    """
    token = _KEPT.set(frozenset(layers))
    try:
        yield
    finally:
        _KEPT.reset(token)


def needs_check(layers: Iterable[LatentNorm]) -> bool:
    """Whether some of the layers use statistics that training could have made stale.

    Args:
        layers: of a network.
    """
    kept = _KEPT.get()
    return any(
        layer.normalizer.uses_batch and not layer.training and layer not in kept for layer in layers
    )


def check_statistics(network: nn.Module) -> None:
    """Refuse missing or stale population statistics.

    Args:
        network: a network with latent layers.

    Raises:
        StatisticsError: naming the first layer concerned, and what to do.
    """
    layers = [(name, layer) for name, layer in _named_batch_layers(network) if not layer.unused]
    if not layers:
        return
    stamps = [(name, layer.statistics_stamp) for name, layer in layers]
    missing = [layer.name for _, layer in layers if layer.statistics_stamp is None]
    if missing:
        raise StatisticsError(
            f"{missing[0]} has no population statistics for evaluation mode "
            f"({len(missing)} of {len(layers)} batch layers). {_FIX}"
        )
    present = fingerprint(network)
    compared: set[tuple[int, str]] = set()
    for name, stamp in stamps:
        assert stamp is not None
        # All layers have one stamp, as a rule: its hashes are compared once.
        key = (id(stamp.hashes), stamp.layer.removesuffix(name))
        changed = [] if key in compared else _differences(stamp, name, present)
        compared.add(key)
        if changed:
            first = ", ".join(map(repr, changed[:3])) + (", ..." if len(changed) > 3 else "")
            raise StatisticsError(
                f"{name or 'the layer'}: the population statistics are stale, {len(changed)} of "
                f"{len(present)} tensors ({first}) are not what they were estimated for. {_FIX}"
            )


def _named_batch_layers(network: nn.Module) -> list[tuple[str, LatentNorm]]:
    return [
        (name, m)
        for name, m in network.named_modules()
        if isinstance(m, LatentNorm) and m.normalizer.uses_batch
    ]


def _differences(stamp: Stamp, name: str, present: Mapping[str, int]) -> list[str]:
    """Names of the tensors that are not as in the stamp of the layer of that name now."""
    known = stamp.hashes
    if stamp.layer != name and stamp.layer.endswith(f".{name}"):  # a part of that network
        start = stamp.layer.removesuffix(name)
        known = {k.removeprefix(start): v for k, v in known.items() if k.startswith(start)}
    elif stamp.layer != name and name.endswith(f".{stamp.layer}"):  # that network in another
        start = name.removesuffix(stamp.layer)
        known = {start + k: v for k, v in known.items()}
    changed = [k for k, v in present.items() if known.get(k) != v]
    # What comes after all that is present may be missing: the first layers alone are as they were.
    last = max((i for i, k in enumerate(known) if k in present), default=0)
    return changed + [k for i, k in enumerate(known) if i < last and k not in present]


class Watch:
    """Checks a network's statistics before it runs in evaluation mode, whoever calls it.

    It is one of the network's hooks. The network's tensors are compared with those of the last
    successful check, by their version counters and places. ``tensor.data`` and other libraries change
    tensors without counting, so small networks on the CPU are compared number by number with a copy,
    which costs little beside a call; others are read by :meth:`check` alone. If anything changed, the
    fingerprint decides.
    """

    def __init__(self) -> None:
        self._known: _Known | None = None

    def __deepcopy__(self, memo: Any) -> Watch:
        return Watch()

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()

    def __call__(self, network: nn.Module, args: Any) -> None:
        """Check before a call that is not a LatentNetwork's, which checks for itself."""
        if not torch.compiler.is_compiling() and not is_handing_over():
            self.before_call(network, batch_layers(network))

    def before_call(self, network: nn.Module, layers: Sequence[LatentNorm]) -> None:
        """Check the statistics that a call will use.

        Args:
            network: the network.
            layers: those of its layers that may take statistics over the batch.

        Raises:
            StatisticsError: if they are missing or stale.
        """
        if torch.compiler.is_compiling() or _VERIFIED.any or network in _VERIFIED.networks:
            return
        if needs_check(layers):
            self._check(network, layers, read=False)

    def check(self, network: nn.Module) -> None:
        """Check the statistics, whatever the mode.

        Raises:
            StatisticsError: if they are missing or stale.
        """
        if layers := batch_layers(network):
            self._check(network, layers, read=True)

    def _check(self, network: nn.Module, layers: Sequence[LatentNorm], read: bool) -> None:
        values = tensors(network)
        try:
            places = [(id(value), value.data_ptr()) for value in values]
        except (RuntimeError, NotImplementedError):
            return  # weights that a function transform gave: they are the caller's arguments
        if is_capturing() or any(value.is_meta for value in values):
            return
        stamps = [layer.statistics_stamp for layer in layers]
        versions = _versions(values)
        known = self._known
        if known is not None and (stamps, places) == (known.stamps, known.places):
            if known.flat:
                if versions == known.versions and known.is_copied():
                    return
            elif versions == known.versions and versions is not None and not read:
                return
        check_statistics(network)
        self._known = _Known(stamps, places, versions, values)


class _Known:
    """What a network held when its statistics were found to be current."""

    def __init__(
        self,
        stamps: list[Stamp | None],
        places: list[tuple[int, int]],
        versions: list[int] | None,
        values: list[Tensor],
    ) -> None:
        self.stamps, self.places, self.versions = stamps, places, versions
        self.flat: dict[torch.dtype, list[Tensor]] = {}
        if sum(v.numel() for v in values) <= _SMALL and all(map(_is_plain, values)):
            for value in values:
                flat = value.detach().as_strided(
                    (value.numel(),), (1,)
                )  # whatever the order of axes
                self.flat.setdefault(flat.dtype, []).append(flat)
        self._copies = self._contents()

    def is_copied(self) -> bool:
        """Whether the tensors hold, bit by bit, what they held."""
        return all(map(torch.equal, self._contents(), self._copies))

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


class _Verified(threading.local):
    networks: tuple[nn.Module, ...] = ()
    any: bool = False


_VERIFIED = _Verified()


@contextmanager
def verified(network: nn.Module) -> Iterator[None]:
    """Context in which nothing changes the network: checked now, and at no call within, in this thread.

    Raises:
        StatisticsError: if statistics are missing or stale.
    """
    watch(network).check(network)
    before = _VERIFIED.networks
    _VERIFIED.networks = (*before, network)
    try:
        yield
    finally:
        _VERIFIED.networks = before


@contextmanager
def unchecked() -> Iterator[None]:
    """Context, or decorator, in which calls of this thread are only looked at, for shapes and order."""
    before, _VERIFIED.any = _VERIFIED.any, True
    try:
        yield
    finally:
        _VERIFIED.any = before


def watch(network: nn.Module) -> Watch:
    """Have statistics checked, follow loaded state dicts, and be marked in saved ones if stale."""
    for hook in network._forward_pre_hooks.values():
        if isinstance(hook, Watch):
            return hook
    found = Watch()
    network.register_forward_pre_hook(found)
    if _after_loading not in network._load_state_dict_post_hooks.values():
        network.register_load_state_dict_post_hook(_after_loading)
        network.register_state_dict_post_hook(_after_saving)
    return found


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    # A file without some of the tensors does not say for which weights its statistics are.
    missing = incompatible_keys.missing_keys
    own = [name for name, _ in named_tensors(module)]
    if not any(key == name or key.endswith(f".{name}") for key in missing for name in own):
        stamp_statistics(module)


def _after_saving(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    # Who loads this file could not know that its statistics are of other weights.
    layers = [(n, m) for n, m in _named_batch_layers(module) if m.statistics_stamp is not None]
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
