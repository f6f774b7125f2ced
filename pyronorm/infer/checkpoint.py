"""Checkpoints: what a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from pyronorm.checks import Count, check_fields
from pyronorm.errors import FileError, OptionError
from pyronorm.files import make_folder, only_run, remove_leftovers, write_file
from pyronorm.infer.callbacks import Callback

if TYPE_CHECKING:
    from pyronorm.infer.trainer import Trainer

__all__ = ["Checkpoint"]

_NAME = b"pyronorm checkpoint"
_HEAD = _NAME + b" 2\n"


@dataclass
class Checkpoint(Callback):
    """Store the state of training, and go on from it.

    The file ``checkpoint.pt`` in the folder holds model, guide, optimizer, schedulers, generators, the
    place in the data, the history, and the callbacks that have a ``state_dict``. It is written after
    each epoch and every so many steps: to the side first, then put in its place, so that there is a
    whole one at any moment. After a kill or a power cut at most one interval is lost, and on a CPU
    the resumed run gives the numbers of one that never stopped, bit by bit.

    What the data draw themselves has to come from the generators of Python, NumPy or torch, within
    this process. Resuming skips over the batches of the epoch that were used already.

    One run at a time works in a folder: a second one is refused, in this process or another.

    Args:
        folder: where the file lies; made if it is not there.
        every: steps between files.
        resume: go on from the file in the folder, if there is one; without it a folder that has one is
            refused.

    Raises:
        OptionError: if ``every`` is below 1, if there is a file that is not to be resumed, if it is
            of another run, or if another run works in the folder.
        FileError: if the file is damaged, or cannot be written.
    """

    folder: str | Path
    every: Count = 1000
    resume: bool = False
    _held: WeakKeyDictionary[Trainer, ExitStack] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / "checkpoint.pt"

    def on_fit_start(self, trainer: Trainer) -> None:
        """Go on from the file, or see that there is none."""
        state = trainer.processes.from_first(lambda: self._found(trainer))
        if state is not None:
            trainer.load_state_dict(state)

    def _found(self, trainer: Trainer) -> dict[str, Any] | None:
        """The stored state, if the run is to go on from it; the folder is this trainer's from now on."""
        lock = ExitStack()
        lock.enter_context(only_run(make_folder(self.folder), "Checkpoint"))
        self._held[trainer] = lock
        remove_leftovers(self.folder)
        if not self.path.exists():
            return None
        if not self.resume:
            if trainer.steps:  # this trainer's own
                return None
            raise OptionError(
                f"Checkpoint: {self.path} holds a run. Go on with it by Checkpoint(folder, "
                "resume=True), or take another folder."
            )
        return None if trainer.steps else self._read()

    def on_step_end(self, trainer: Trainer) -> None:
        """Write the file every so many steps."""
        if trainer.steps % self.every == 0:
            self._write(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Write the file."""
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Leave the folder to others."""
        self._held.pop(trainer, ExitStack()).close()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Leave the folder to others."""
        self._held.pop(trainer, ExitStack()).close()

    def _read(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            head, digest, content = file.readline(), file.readline().strip(), file.read()
        if head.startswith(_NAME) and head != _HEAD:
            raise FileError(
                f"Checkpoint: {self.path} has another format ({head.decode().strip()}) than this "
                f"version of pyronorm reads ({_HEAD.decode().strip()}). Go on with the version that "
                "wrote it, or delete it to start anew."
            )
        if head != _HEAD or digest != _digest(content):
            raise FileError(
                f"Checkpoint: {self.path} is damaged or no checkpoint. Delete it to start anew."
            )
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
        return state

    def _write(self, trainer: Trainer) -> None:
        state = trainer.state_dict()
        if trainer.fabric.is_global_zero:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            content = buffer.getbuffer()
            with ExitStack() as lock:
                make_folder(self.folder)
                if trainer not in self._held:  # epochs by hand
                    lock.enter_context(only_run(self.folder, "Checkpoint"))
                write_file(self.path, (_HEAD, _digest(content), b"\n", content))


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
