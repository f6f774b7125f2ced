"""Memory over many steps and predictions; run by test_memory.py, without its checks of types."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyro

import pyronorm as pn
from tests.test_memory import X, Y, build

ALLOWED = 50_000  # bytes: what the allocator of Python moves about


def resident() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def check(name: str, run, repeats: int) -> None:
    """Compare what is held after a fifth of the runs and after all."""
    held = []
    for part in (repeats // 5, repeats - repeats // 5):
        for _ in range(part):
            run()
        gc.collect()
        held.append((tracemalloc.get_traced_memory()[0], len(gc.get_objects()), resident()))
    python, objects, memory = (after - before for before, after in zip(*held, strict=True))
    print(f"{name}: {python} bytes of Python, {objects} objects, {memory} bytes of memory more")
    assert python < ALLOWED
    assert objects < 1000
    assert memory < 16 * 2**20


def main(repeats: int) -> None:
    model, guide = build()
    trainer = pn.Trainer(model, guide, (X, Y), batch_size=16, seed=0)

    def epoch() -> None:  # two steps
        trainer.epoch()
        trainer.history.epochs.clear()

    for _ in range(20):
        epoch()
    tracemalloc.start()
    check(f"{repeats} steps", epoch, repeats // 2)
    trainer.update_statistics()
    check(f"{repeats} predictions", lambda: pn.predict(model, guide, X, 3), repeats)
    assert not list(pyro.get_param_store().keys())


if __name__ == "__main__":
    main(int(sys.argv[1]))
