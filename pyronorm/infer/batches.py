"""The batches of training: pass after pass, and from any place within one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from pyronorm.errors import DataError
from pyronorm.infer.batch import MiniBatch, num_examples, split
from pyronorm.infer.data import (
    Data,
    as_batches,
    count_examples,
    folded,
    has_small_rest,
    num_batches,
)
from pyronorm.infer.generators import Generators, order_generators
from pyronorm.infer.preparation import compare_num_data, refuse_number_of_batches
from pyronorm.inputs import is_one_piece
from pyronorm.model import NormalizationModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["TrainingBatches"]


class TrainingBatches:
    """Batches with targets on the device.

    Args:
        data: in any of the forms of :data:`pyronorm.infer.data.Data`.
        model: says how many examples it expects, and where inputs belong.
        batch_size: examples per batch, where the data do not come in batches.
        fabric: says where targets belong.
        seed: seeds the order of data that do not come in batches; None draws from torch's generator.
        least: a batch of fewer examples joins the one before it.

    Raises:
        OptionError: if the model's ``num_data`` is the number of batches.
        DataError: if the data have no known form.
    """

    def __init__(
        self,
        data: Data,
        model: NormalizationModel,
        batch_size: int,
        fabric: Fabric,
        seed: int | None,
        least: int,
    ) -> None:
        batches = as_batches(data, batch_size, shuffle=True, seed=seed, least=least)
        self._model = model
        self._least = least if has_small_rest(batches, least) else 1
        self._order = order_generators(batches)
        self._expected = count_examples(batches)
        refuse_number_of_batches(model.num_data, self._expected, batches)
        self._source = batches
        self._counts = True  # until the number of examples of a pass is known and compared
        if isinstance(batches, DataLoader):
            batches = fabric.setup_dataloaders(batches)
        self._batches = batches
        self._start: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self.position = 0
        """Batches given so far in this pass."""

    @property
    def total(self) -> int | None:
        """Batches of a pass, None where the data do not say."""
        return num_batches(self._batches)

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
        for batch in folded(self._batches, self._least):
            self.position += 1
            if self._counts:
                self._look_at(batch)
            ready = self._prepared(batch) if self.position > skipped or self._counts else None
            examples += 0 if ready is None else num_examples(ready.y)
            if self.position == skipped and resumed is not None:
                self._restore(resumed["now"], generators)
            if self.position > skipped and ready is not None:
                yield ready
        if self.position == 0:
            raise DataError("fit: train_data has no batch.")
        if self._counts:
            for compare in (refuse_number_of_batches, compare_num_data):
                compare(self._model.num_data, examples, range(self.position))
            self._counts = False

    def finish(self) -> None:
        """Say that the pass is over."""
        self._start = None
        self.position = 0

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
        }

    def restore(self, state: dict[str, Any], generators: Generators) -> bool:
        """Go on from a state.

        Args:
            state: from :meth:`state`.
            generators: those of training.

        Returns:
            Whether it lies within a pass.
        """
        self._counts = state["counts"]
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
