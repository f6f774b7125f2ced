"""The batches of training: pass after pass, and from any place within one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pyronorm.errors import DataError
from pyronorm.infer.batch import MiniBatch, batch_length, split
from pyronorm.infer.data import (
    Data,
    as_batches,
    count_examples,
    folded,
    has_small_rest,
)
from pyronorm.infer.generators import Generators, order_generators
from pyronorm.infer.lengths import num_batches
from pyronorm.infer.preparation import compare_num_data, refuse_number_of_batches
from pyronorm.infer.processes import Processes
from pyronorm.infer.shares import Share, check_differ, in_step, is_dealt, is_even
from pyronorm.infer.targets import loader_of
from pyronorm.inputs import is_one_piece
from pyronorm.model import NormalizationModel

__all__ = ["TrainingBatches"]


class TrainingBatches:
    """Batches with targets on the device.

    Args:
        data: in any of the forms of :data:`pyronorm.infer.data.Data`.
        model: says how many examples it expects, and where batches belong.
        batch_size: examples per batch, where the data do not come in batches.
        seed: seeds the order of data that do not come in batches; None draws from torch's generator.
        least: a batch of fewer examples joins the one before it.
        processes: each has its share of the batches.

    Raises:
        OptionError: if the model's ``num_data`` is the number of batches.
        DataError: if the data have no known form.
    """

    def __init__(
        self,
        data: Data,
        model: NormalizationModel,
        batch_size: int,
        seed: int | None,
        least: int,
        processes: Processes,
    ) -> None:
        batches = as_batches(data, batch_size, shuffle=True, seed=seed, least=least)
        self._model = model
        self._processes = processes
        self._order = order_generators(batches)
        expected = count_examples(batches)
        # In step by their indices; else it has to be asked who has another batch.
        self._even = processes.size == 1 or is_even(batches)
        share = Share(processes, rounds=True, least=least).of(batches)
        numbers = float(num_batches(share) or 0), float(expected or 0)
        rows = processes.exchange(float(self._even), *numbers)
        if len({even for even, _, _ in rows}) > 1:
            raise DataError(
                "fit: train_data is a data set or its loader in some processes, and a stream or a list "
                "of batches in others. Give all processes the same kind."
            )
        totals = [int(number) for _, number, _ in rows]
        self.total = max(totals) if min(totals) else None
        """Batches of a pass, of the process that has most; None where the data do not say."""
        if expected is not None and not is_dealt(batches):  # this process's part of them
            expected = int(sum(row[2] for row in rows))
        self._expected = expected
        refuse_number_of_batches(model.num_data, expected, batches)
        self._source = batches
        self._counts = True  # until the number of examples of a pass is known and compared
        self._least = least if has_small_rest(share, least) else 1
        self._batches = share
        self._is_first = True
        self._passes = 0
        self._start: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self.position = 0
        """Batches given so far in this pass."""
        self.stands_in = False
        """Whether the present batch only keeps this process in step with others that have more."""

    def first(self) -> MiniBatch:
        """The first batch of a pass.

        Raises:
            DataError: if there is none.
        """
        for batch in self._batches:
            return self._prepared(batch)
        raise DataError("fit: train_data has no batch.")

    def run_through(self, generators: Generators) -> Iterator[MiniBatch]:
        """Iterate over the batches of a pass, or over those that a resumed pass has left.

        Args:
            generators: those in force.

        Raises:
            DataError: if there is no batch, or one that is no pair.
        """
        resumed, self._resumed = self._resumed, None
        skipped = 0 if resumed is None else resumed["position"]
        if resumed is not None:
            self._restore(resumed["start"], generators)
        self._start = self._capture(generators)
        self.position = examples = 0
        _set_epoch(self._batches, self._passes)
        for batch in self._in_step(folded(self._batches, self._least)):
            self.position += 1
            if self._counts:
                self._look_at(batch)
            ready = self._prepared(batch) if self.position > skipped or self._counts else None
            examples += 0 if ready is None or self.stands_in else batch_length(ready.y)
            if self.position == skipped and resumed is not None:
                self._restore(resumed["now"], generators)
            if self.position > skipped and ready is not None:
                yield ready
        if self.position == 0:
            raise DataError("fit: train_data has no batch.")
        if self._counts:
            examples = int(sum(n for (n,) in self._processes.exchange(float(examples))))
            for compare in (refuse_number_of_batches, compare_num_data):
                compare(self._model.num_data, examples, range(self.position))
            self._counts = False

    def finish(self) -> None:
        """Say that the pass is over."""
        self._start = None
        self.position = 0
        self._passes += 1

    def state(self, generators: Generators) -> dict[str, Any]:
        """Where the batches are, and the generators.

        Args:
            generators: those of training.
        """
        return {
            "start": self._start,
            "position": self.position,
            "now": self._capture(generators),
            "counts": self._counts,
            "passes": self._passes,
        }

    def restore(self, state: dict[str, Any], generators: Generators) -> bool:
        """Go on from a state.

        Args:
            state: from :meth:`state`.
            generators: those of training.

        Returns:
            Whether it lies within a pass.
        """
        self._counts, self._passes = state["counts"], state["passes"]
        if state["start"] is None:
            self._restore(state["now"], generators)
            return False
        self._resumed = state
        return True

    def _capture(self, generators: Generators) -> dict[str, Any]:
        order = [generator.get_state() for generator in self._order]
        return {"generators": generators.state(), "order": order}

    def _restore(self, state: dict[str, Any], generators: Generators) -> None:
        generators.restore(state["generators"])
        for generator, order in zip(self._order, state["order"], strict=True):
            generator.set_state(order)

    def _look_at(self, batch: Any) -> None:
        """Compare ``num_data`` with what a loader says, where that counts what ``y`` counts."""
        if self._expected is not None and not is_one_piece(batch):  # nodes of graphs, say
            compare_num_data(self._model.num_data, self._expected, self._source)
            self._counts = False

    def _prepared(self, batch: Any) -> MiniBatch:
        found = split(batch)
        found.targets("fit")
        return found.to(self._model.network)

    def _in_step(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; where other processes have more, the last one again, to stand in."""
        if self._even:
            yield from batches
            return
        last = None
        for batch in in_step(self._processes, batches):
            self.stands_in = batch is None
            last = last if batch is None else batch
            if last is None:
                raise DataError("fit: train_data has no batch in this process, but in others.")
            if self._is_first:
                check_differ(self._processes, last)
                self._is_first = False
            yield last


def _set_epoch(batches: Any, number: int) -> None:
    """Tell samplers that want to know it (DistributedSampler) the number of the pass."""
    loader = loader_of(batches)
    outer = getattr(loader, "batch_sampler", None)
    for part in (getattr(loader, "sampler", None), outer, getattr(outer, "sampler", None)):
        set_epoch = getattr(part, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(number)
