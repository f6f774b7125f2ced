from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils._pytree import tree_flatten

import pyronorm as pn
from pyronorm.errors import FileError, OptionError
from pyronorm.infer import Callback
from tests.infer.resumable import EPOCHS, FORMS, DieAt, make, result
from tests.processes import kill_again_and_again


class StopError(Exception):
    pass


def same(first: object, second: object) -> bool:
    (ours, structure), (theirs, other) = tree_flatten(first), tree_flatten(second)
    return structure == other and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


def uninterrupted(form: str = "tensors") -> dict[str, object]:
    trainer = make(form)
    trainer.run(EPOCHS)
    return result(trainer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("died", [5, 8, 12])
def test_a_resumed_run_is_the_run_that_never_stopped(form, died, tmp_path):
    """Bit by bit: weights, statistics, optimizer, history; from mid-epoch and from its end."""
    expected = uninterrupted(form)
    trainer = make(form, folder=tmp_path, callbacks=[DieAt(died, StopError)])
    with pytest.raises(StopError):
        trainer.run(EPOCHS)
    torch.rand(3)  # what happened since then does not matter
    trainer = make(form, folder=tmp_path, callbacks=[DieAt(99)])
    trainer.run(EPOCHS)
    assert same(result(trainer), expected)


def test_checkpoints_change_nothing(tmp_path):
    trainer = make(folder=tmp_path, every=1)
    trainer.run(EPOCHS)
    assert same(result(trainer), uninterrupted())
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", ".lock"}


def test_a_finished_run_gives_its_result_again_and_goes_on(tmp_path):
    make(folder=tmp_path).run(2)
    again = make(folder=tmp_path)
    again.run(2)
    shorter = make()
    shorter.run(2)
    assert same(result(again), result(shorter))
    longer = make(folder=tmp_path)
    longer.run(EPOCHS)
    assert same(result(longer), uninterrupted())


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    other = make(folder=tmp_path)

    class Second(Callback):
        refusals = 0

        def on_step_end(self, trainer):
            if trainer.steps == 5:
                with pytest.raises(
                    OptionError, match=r"Checkpoint: another run works in .*process"
                ):
                    other.run(2)
                self.refusals += 1

    trainer = make(folder=tmp_path, callbacks=[second := Second(), DieAt(99)])
    trainer.run(EPOCHS)
    assert second.refusals == 1
    assert same(result(trainer), uninterrupted())
    with pytest.raises(StopError):
        make(folder=tmp_path / "other", callbacks=[DieAt(3, StopError)]).run(2)
    make(folder=tmp_path / "other").run(2)  # a run that failed holds nothing


def test_stopped_early_stays_stopped(tmp_path):
    def patient(folder):
        trainer = make(folder=folder)
        trainer.callbacks[0].patience = 1
        trainer.optimizer.param_groups[0]["lr"] = 2.0
        return trainer

    first = patient(tmp_path)
    first.run(60)
    assert len(first.history.epochs) < 60
    again = patient(tmp_path)
    again.run(60)
    assert same(result(again), result(first))


def run_script(tmp_path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.infer.resumable", str(tmp_path / "run")]
    return subprocess.Popen([*command, str(tmp_path / "out.pt"), *arguments])


def test_killed_and_resumed(tmp_path):
    assert run_script(tmp_path, "11").wait() == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    trainer = make(folder=tmp_path / "run", callbacks=[DieAt(99)])
    trainer.run(EPOCHS)
    assert same(result(trainer), uninterrupted())


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
    out, mark = tmp_path / "out.pt", tmp_path / "run.mark"
    command = [sys.executable, "-m", "tests.infer.resumable", str(tmp_path / "run"), str(out)]

    def at_work(process: int) -> bool:
        return mark.exists() and mark.read_text() == str(process)

    assert kill_again_and_again([*command, "99", "0.4"], at_work, 1.2) >= 10
    assert same(torch.load(out, weights_only=True), uninterrupted())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    def trainer(width):
        network = torch.nn.Sequential(
            torch.nn.Linear(5, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2)
        )
        model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), 16)
        data = torch.randn(16, 5), torch.arange(16) % 2
        stored = pn.Checkpoint(tmp_path, resume=True)
        return pn.Trainer(model, pn.guides.Point(model), data, seed=7, callbacks=[stored])

    trainer(4).run(1)
    with pytest.raises(
        OptionError, match=r"another network: .* has shape \[4, 5\] there and \[6, 5\]"
    ):
        trainer(6).run(2)


def test_what_cannot_be_resumed_is_refused(tmp_path):
    make(folder=tmp_path).run(1)
    trainer = make()
    trainer.callbacks.append(pn.Checkpoint(tmp_path))
    with pytest.raises(OptionError, match=r"checkpoint.pt holds a run. Go on with it by"):
        trainer.run(2)

    def resumed(**options):
        model = make().model
        arguments = {"batch_size": 8, "seed": 7, "train_network": True, **options}
        checkpoint = pn.Checkpoint(tmp_path, resume=True)
        guide = arguments.pop("guide", pn.guides.MeanField)(model)
        data = make()._data
        pn.Trainer(model, guide, data, callbacks=[checkpoint], **arguments).run(2)

    accumulate = pn.Optimization(accumulate=2)
    with pytest.raises(
        OptionError, match="another run: guide is 'MeanField' there and 'Point' here"
    ):
        resumed(guide=pn.guides.Point, optimization=accumulate)
    with pytest.raises(OptionError, match="another run: batch_size is 8 there and 16 here"):
        resumed(batch_size=16, optimization=accumulate)
    with pytest.raises(OptionError, match="another run: accumulate is 2 there and 1 here"):
        resumed()
    with pytest.raises(OptionError, match="another run: compile is False there and True here"):
        resumed(optimization=pn.Optimization(accumulate=2, compile=True))
    with pytest.raises(
        OptionError, match=r"has the callbacks \['EarlyStopping'\], and this run \[\]"
    ):
        resumed(optimization=accumulate)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (b"", content[:1000], b"x" * 500, bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="is damaged or no checkpoint. Delete it"):
            make(folder=tmp_path).run(2)
    path.write_bytes(content.replace(b"checkpoint 2", b"checkpoint 9", 1))
    with pytest.raises(FileError, match=r"another format \(pyronorm checkpoint 9\)"):
        make(folder=tmp_path).run(2)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    make(folder=tmp_path).run(1)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="cannot be written, No space left on device"):
        make(folder=tmp_path).run(2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", ".lock"}
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.usefixtures("unchecked")
def test_intervals():
    for bad in (0, -1, 1.5, None):
        with pytest.raises(OptionError, match="Checkpoint: every must be at least 1"):
            pn.Checkpoint("folder", every=bad)
