"""Do the population statistics belong to the weights as they are now?

Population statistics are estimated for one set of weights. Training on makes them stale, and a
network evaluated with stale statistics is silently wrong. So each layer that keeps them carries a
*stamp*: the fingerprint of all parameters and buffers of the network, itself included, at the time
of the estimate. A stamp is compared with the present fingerprint before the statistics are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import nn

from pyronorm.checks import checked
from pyronorm.devices import read_together
from pyronorm.errors import StatisticsError
from pyronorm.normalizers.base import LatentNorm
from pyronorm.normalizers.fingerprint import fingerprint

__all__ = [
    "NEVER_RAN",
    "Stamp",
    "batch_layers",
    "check_statistics",
    "invalidate_statistics",
    "kept_statistics",
    "named_batch_layers",
    "needs_check",
    "stamp_loaded",
    "stamp_statistics",
    "statistics_names",
    "trust_statistics",
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

    Layers that never saw a batch (``num_batches_tracked`` is 0) have none, and stay without. Where
    others have some, such a layer is refused when it runs: in an encoder cut short it never does.

    Args:
        network: a converted network; only the stamps of its layers change.
    """
    hashes = fingerprint(network)
    layers = named_batch_layers(network)
    counts = read_together([layer.state("num_batches_tracked") for _, layer in layers])
    some = any(count > 0 for count in counts)  # then layers without any never ran in training
    for (name, layer), count in zip(layers, counts, strict=True):
        layer.statistics_stamp = Stamp(name, hashes) if count > 0 else None
        layer.unused = count == NEVER_RAN or (some and count == 0)


def stamp_loaded(network: nn.Module) -> None:
    """Declare that statistics belong to the parameters of the state dict that they were loaded with.

    If the statistics are, bit by bit, those that were there before, while parameters before the last
    batch layer changed, nobody has estimated them for these: their stamps stay.

    Args:
        network: a converted network; only the stamps of its layers change.
    """
    present, statistics = fingerprint(network), statistics_names(network)
    last = max((i for i, key in enumerate(present) if key in statistics), default=0)
    stale = False
    for name, layer in named_batch_layers(network):
        if layer.statistics_stamp is None:
            continue
        changed = _differences(layer.statistics_stamp, name, present)
        if not statistics.isdisjoint(changed):
            stale = False
            break
        stale = stale or any(key in changed for key in [*present][:last])
    if not stale:
        stamp_statistics(network)


@checked
def trust_statistics(network: nn.Module) -> None:
    """Accept the population statistics as they are, even if nothing shows that they are current.

    For weights that were changed on purpose without making the statistics wrong (rounded to half
    precision, a new head behind the last batch normalization, statistics written by hand).

    Args:
        network: a converted network, a LatentNetwork or a NormalizationModel.

    Raises:
        StatisticsError: if it has no latent layers, so that it has not been converted.
    """
    if not any(isinstance(module, LatentNorm) for module in network.modules()):
        raise StatisticsError(
            f"trust_statistics: {type(network).__name__} has no latent layers. Convert it first, "
            "pyronorm.convert(network), and trust the statistics of what that returns."
        )
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
    still = [layer for layer in layers if not layer.training]
    return any(layer.normalizer.uses_batch and layer not in kept for layer in still)


def check_statistics(network: nn.Module, present: Mapping[str, int] | None = None) -> None:
    """Refuse missing or stale population statistics.

    Args:
        network: a network with latent layers.
        present: its fingerprint, where that is known.

    Raises:
        StatisticsError: naming the first layer concerned, and what to do.
    """
    layers = [(name, layer) for name, layer in named_batch_layers(network) if not layer.unused]
    if not layers:
        return
    stamps = [(name, layer.statistics_stamp) for name, layer in layers]
    missing = [layer.name for _, layer in layers if layer.statistics_stamp is None]
    if missing:
        raise StatisticsError(
            f"{missing[0]} has no population statistics for evaluation mode "
            f"({len(missing)} of {len(layers)} batch layers). {_FIX}"
        )
    present = fingerprint(network) if present is None else present
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


def named_batch_layers(network: nn.Module) -> list[tuple[str, LatentNorm]]:
    """The same layers with their names in the network."""
    return [
        (name, m)
        for name, m in network.named_modules()
        if isinstance(m, LatentNorm) and m.normalizer.uses_batch
    ]


def statistics_names(network: nn.Module) -> set[str]:
    """The names of all population statistics."""
    return {
        f"{name}.{key}" if name else key
        for name, layer in named_batch_layers(network)
        for key in layer.normalizer.buffers(layer.num_channels)
    }


def _differences(stamp: Stamp, name: str, present: Mapping[str, int]) -> list[str]:
    """Names of the tensors that are not as in the stamp of the layer of that name now."""
    known = stamp.hashes
    if not name and stamp.layer:  # the layer alone
        start = f"{stamp.layer}."
        known = {k.removeprefix(start): v for k, v in known.items() if k.startswith(start)}
    elif stamp.layer != name and stamp.layer.endswith(f".{name}"):  # a part of that network
        start = stamp.layer.removesuffix(name)
        known = {k.removeprefix(start): v for k, v in known.items() if k.startswith(start)}
    elif stamp.layer != name and name.endswith(f".{stamp.layer}"):  # that network in another
        start = name.removesuffix(stamp.layer)
        known = {start + k: v for k, v in known.items()}
    changed = [k for k, v in present.items() if known.get(k) != v]
    # Modules after all that are present may be missing: the first layers alone are as they were.
    last = max((i for i, k in enumerate(known) if k in present), default=0)
    owners = {k.rpartition(".")[0] for k in present}
    missing = [(i, k) for i, k in enumerate(known) if k not in present]
    return changed + [k for i, k in missing if i < last or k.rpartition(".")[0] in owners]
