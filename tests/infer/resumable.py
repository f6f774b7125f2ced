"""A run with checkpoints, in a process of its own that may be killed.

Arguments: folder, output, and as one likes the step to die at and the seconds of a step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyronorm as pn
from pyronorm.infer import Callback
from tests.nets import mlp

NUM_DATA = 50
EPOCHS = 5
FORMS = ("tensors", "tensors without seed", "loader", "loader with generator", "stream-like list")


class DieAt(Callback):
    """Kill the process, or raise, at a step."""

    def __init__(self, step: int, error: type[BaseException] | None = None) -> None:
        self.step = step
        self.error = error

    def on_step_end(self, trainer: pn.Trainer) -> None:
        if trainer.steps == self.step:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGKILL)


class Slow(Callback):
    """Say that work has begun, by a file beside the folder, and take time."""

    def __init__(self, seconds: float, mark: Path) -> None:
        self.seconds = seconds
        self.mark = mark

    def on_step_end(self, trainer: pn.Trainer) -> None:
        self.mark.write_text(str(os.getpid()))
        time.sleep(self.seconds)


def noisy(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An augmentation that draws from torch and NumPy."""
    return x + 0.1 * torch.randn_like(x) + 0.1 * float(np.random.rand()), y  # noqa: NPY002


def make(form: str = "tensors", *, callbacks=(), every: int = 3, folder: str | Path | None = None):
    """The trainer, from scratch: dropout, noise, schedules, accumulation, early stopping."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(NUM_DATA, 5, generator=generator)
    y = (x[:, 0] > 0.3).long()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    network = mlp()
    network.insert(3, nn.Dropout(0.2))
    model = pn.NormalizationModel(
        pn.convert(network), pn.likelihoods.Categorical(), NUM_DATA, pn.priors.BatchNoise(16)
    )
    train: object = (x, y)
    if form.startswith("loader"):
        own = torch.Generator().manual_seed(1) if "generator" in form else None
        train = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=own)
    elif form == "stream-like list":
        train = list(zip(x.split(7), y.split(7), strict=True))  # with a rest of one
    schedulers = torch.optim.lr_scheduler
    stored = [] if folder is None else [pn.Checkpoint(folder, every=every, resume=True)]
    return pn.Trainer(
        model,
        pn.guides.MeanField(model),
        train,
        batch_size=8,
        optimization=pn.Optimization(
            optimizer=lambda groups: torch.optim.Adam(groups, lr=0.02),
            scheduler=lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, patience=0),
            step_scheduler=lambda optimizer: schedulers.ExponentialLR(optimizer, 0.99),
            accumulate=2,
        ),
        augment=noisy,
        validation=pn.Validation((x, y), num_samples=2),
        callbacks=[*stored, pn.EarlyStopping(patience=4), *callbacks],
        seed=None if form != "tensors" else 7,
    )


def result(trainer: pn.Trainer) -> dict[str, object]:
    """All that training leaves behind, but for times."""
    epochs = [
        (e.epoch, e.loss, e.kl_weight, e.lr, e.validation_nll) for e in trainer.history.epochs
    ]
    return {
        "model": trainer.model.state_dict(),
        "guide": trainer.guide.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "history": [*epochs, trainer.history.best_epoch, trainer.steps],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    callbacks: list[Callback] = [DieAt(int(sys.argv[3]))] if len(sys.argv) > 3 else []
    if len(sys.argv) > 4:
        callbacks.append(Slow(float(sys.argv[4]), Path(sys.argv[1]).with_suffix(".mark")))
    trainer = make(folder=sys.argv[1], callbacks=callbacks)
    trainer.run(EPOCHS)
    torch.save(result(trainer), sys.argv[2])
