"""The batches of training: pass after pass, and from any place within one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyronorm.errors import DataError
from pyronorm.infer.data import (
    Data,
    as_batches,
    count_examples,
    folded,
    has_small_rest,
    num_batches,
    split,
)
from pyronorm.infer.generators import Generators, order_generators
from pyronorm.infer.preparation import check_num_data
from pyronorm.inputs import num_examples
from pyronorm.model import NormalizationModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["TrainingBatches"]


class TrainingBatches:
    """Pairs ``(x, y)`` on the device.

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
        self._fabric = fabric
        self._least = least if has_small_rest(batches, least) else 1
        self._order = order_generators(batches)
        expected = count_examples(batches)
        check_num_data(model.num_data, expected, batches)
        self._counts = expected is None  # the first pass has to be counted
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

    def first(self) -> tuple[Any, Tensor]:
        """The first batch of a pass.

        Raises:
            DataError: if there is none.
        """
        for batch in self._batches:
            return self._pair(batch)
        raise DataError("fit: train_data has no batch.")

    def run_through(self, generators: Generators) -> Iterator[tuple[Any, Tensor]]:
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
            pair = self._pair(batch) if self.position > skipped or self._counts else None
            examples += 0 if pair is None else num_examples(pair[1])
            if self.position == skipped and resumed is not None:
                self._restore(resumed["now"], generators)
            if self.position > skipped and pair is not None:
                yield pair
        if self.position == 0:
            raise DataError("fit: train_data has no batch.")
        if self._counts:
            check_num_data(self._model.num_data, examples, range(self.position))
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

    def _pair(self, batch: Any) -> tuple[Any, Tensor]:
        x, y = split(batch)
        if y is None:
            raise DataError("fit: train_data must give pairs (x, y), got x alone.")
        targets: torch.Tensor = self._fabric.to_device(y)
        return self._model.network.prepare(x), targets
