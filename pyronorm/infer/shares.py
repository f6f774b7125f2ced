"""Each process's share of the data: batches are dealt to the processes like cards.

Data sets and their loaders are dealt by their indices, in the order that process 0 draws: with ``R``
processes, number ``r`` has batches ``r``, ``r + R``, and so on. So ``R`` processes see in one step what
one process sees in a batch ``R`` times as large, and no example twice. Streams, other iterables and
loaders with a DistributedSampler are taken to be a share already, as everywhere in torch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from pyronorm.errors import DataError
from pyronorm.infer.processes import Processes
from pyronorm.infer.targets import loader_of, with_target
from pyronorm.inputs import tensors_of

__all__ = ["Share", "check_differ", "in_step", "is_dealt", "is_even"]

Plan = list[list[int]]


@dataclass(frozen=True)
class Share:
    """How the batches of a pass are dealt.

    Args:
        processes: among whom.
        rounds: give all processes a batch in each round: they compute each step together. What is left
            for the last round is cut evenly, or joins the round before it.
        limit: batches of a pass, of all processes together (rounds, where there are rounds); None
            for all.
        equal: leave out batches of another size than the first.
        least: a batch of fewer examples joins the one before it.
    """

    processes: Processes
    rounds: bool = False
    limit: int | None = None
    equal: bool = False
    least: int = 1

    def of(self, batches: Iterable[Any]) -> Iterable[Any]:
        """This process's part of the batches.

        Args:
            batches: of all processes, or already this process's own.
        """
        if self.processes.size == 1 or not is_dealt(batches):
            return batches
        if isinstance(batches, with_target):
            return with_target(self.of(batches.batches), batches.key)
        assert isinstance(batches, DataLoader)
        loader = copy.copy(batches)  # of its own class, with all its settings
        key = "sampler" if batches.batch_sampler is None else "batch_sampler"
        sampler = _Dealt(getattr(batches, key), self, batches.batch_sampler is not None)
        loader.__dict__.update({key: sampler, "_iterator": None})
        return loader

    def own_limit(self, batches: Iterable[Any]) -> int | None:
        """How many of its own batches this process takes, where none are dealt; None for all.

        Args:
            batches: as they were given to :meth:`of`, or came from it.
        """
        loader = loader_of(batches)
        samplers = () if loader is None else (loader.sampler, loader.batch_sampler)
        if self.limit is None or any(isinstance(s, _Dealt) for s in samplers):
            return None
        if self.rounds:
            return self.limit
        return len(range(self.processes.rank, self.limit, self.processes.size))

    def deal(self, plan: Plan) -> Plan:
        """This process's batches of a plan for all."""
        size, rank = self.processes.size, self.processes.rank
        plan = _fold(plan, self.least)
        if self.equal:
            plan = [batch for batch in plan if len(batch) == len(plan[0])]
        if not self.rounds:
            return plan[: self.limit][rank::size]
        return [batches[rank] for batches in self._rounds(plan)[: self.limit]]

    def _rounds(self, plan: Plan) -> list[Plan]:
        size = self.processes.size
        full = len(plan) // size * size
        if full == len(plan) and len({len(batch) for batch in plan[-size:]}) > 1:
            full -= size  # the last round, with a rest
        rounds = [plan[i : i + size] for i in range(0, full, size)]
        rest = [index for batch in plan[full:] for index in batch]
        if not rest or (self.equal and rounds):
            return rounds
        least = size * self.least
        if len(rest) < least and rounds:
            rest = [index for batch in rounds.pop() for index in batch] + rest
        if len(rest) < least:
            raise DataError(
                f"data: {len(rest)} examples are too few for {size} processes, each of which needs at "
                f"least {self.least}."
            )
        ends = [len(rest) * (i + 1) // size for i in range(size)]
        return [*rounds, [rest[a:b] for a, b in zip([0, *ends], ends, strict=False)]]


def is_dealt(batches: Iterable[Any]) -> bool:
    """Whether batches are dealt by their indices, rather than a process's own share."""
    loader = loader_of(batches)
    if loader is None or isinstance(loader.dataset, IterableDataset):
        return False
    inner = getattr(loader.batch_sampler, "sampler", None)
    samplers = (loader.sampler, loader.batch_sampler, inner)
    return not any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def is_even(batches: Iterable[Any]) -> bool:
    """Whether all processes have as many batches where rounds are dealt."""
    loader = loader_of(batches)
    return loader is not None and loader.batch_sampler is not None and is_dealt(loader)


def in_step(processes: Processes, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, and None while other processes still have some; for shares of unknown length.

    Args:
        processes: all of them iterate at once.
        batches: this process's own.
    """
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if not any(has for (has,) in processes.exchange(float(batch is not None))):
            return
        yield batch


def check_differ(processes: Processes, batch: Any) -> None:
    """Refuse streams that give two processes the same first batch: each would count twice.

    Args:
        processes: all of them call this.
        batch: the first one of this process's own share.

    Raises:
        DataError: if another process has it, too.
    """
    found = processes.gather(_digest(batch))
    if len(set(found)) < len(found):
        raise DataError(
            "fit: train_data begins with the same batch in several processes, so every example would "
            "count several times. A stream, or an iterable of batches, has to give each process its own "
            "share, such as batches[fabric.global_rank :: fabric.world_size]; data sets and their "
            "loaders are shared out by fit."
        )


def _digest(batch: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors_of(batch).items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()


def _fold(plan: Plan, least: int) -> Plan:
    """Have batches of fewer than ``least`` join the one before."""
    folded: Plan = []
    for batch in plan:
        if folded and len(batch) < least <= len(folded[-1]):
            folded[-1] = folded[-1] + batch
        else:
            folded.append(batch)
    return folded


class _Dealt(Sampler[Any]):
    """This process's batches of another sampler's, in the order that process 0 draws.

    Args:
        sampler: of batches of indices, or of indices that are a batch each.
        share: deals them.
        whole_batches: whether it is of batches for certain.
    """

    def __init__(self, sampler: Iterable[Any], share: Share, whole_batches: bool) -> None:
        self.whole, self.share, self.whole_batches = sampler, share, whole_batches
        self.least = share.least

    def __iter__(self) -> Iterator[Any]:
        share = self.share
        drawn = share.processes.from_first(lambda: list(self.whole))
        if self.whole_batches or (drawn and isinstance(drawn[0], list)):
            yield from share.deal([list(batch) for batch in drawn])
        else:  # what an index stands for is not known: batches, as a rule
            yield from drawn[: share.limit][share.processes.rank :: share.processes.size]

    def __len__(self) -> int:
        size = self.share.processes.size
        number = len(self.whole) if isinstance(self.whole, Sized) else 0
        return -(-number // size)
