"""Time several functions side by side, and record what came out."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"

# glibc gives large blocks back to the system and asks for them again, page by page: half of the
# noise of a CPU benchmark. Keeping them is the same for both sides of a ratio.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
}


def prepare(threads: int = 2) -> None:
    """Restart Python with memory kept by malloc, and fix threads and seeds."""
    if not all(os.environ.get(key) for key in KEEP_MEMORY):
        module = getattr(sys.modules["__main__"], "__spec__", None)
        command = ["-m", module.name] if module is not None else sys.argv[:1]
        arguments = [sys.executable, *command, *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | KEEP_MEMORY)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random.seed(0)


def compare(
    functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Run all functions in every round, in random order.

    Args:
        functions: the first is what the others are compared with.
        rounds: rounds that count.
        warmup: rounds before them.

    Returns:
        For each name the median time in milliseconds, and median and quartiles over rounds of its
        time relative to the first function's in the same round.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        names = list(functions)
        random.shuffle(names)
        for name in names:
            start = time.perf_counter()
            functions[name]()
            if number >= warmup:
                times[name].append(time.perf_counter() - start)
    first = times[next(iter(functions))]
    result = {}
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, first, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        result[name] = {
            "ms": round(1e3 * statistics.median(own), 3),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_low": round(quartiles[0], 3),
            "ratio_high": round(quartiles[2], 3),
        }
    return result


def report(name: str, cases: Mapping[str, dict[str, dict[str, float]]]) -> None:
    """Print a benchmark's cases and write them to ``results/NAME.json``."""
    for case, rows in cases.items():
        print(f"\n{name}: {case}")
        for row, value in rows.items():
            spread = f"({value['ratio_low']:.2f} to {value['ratio_high']:.2f})"
            print(f"  {row:44s}{value['ms']:9.2f} ms   {value['ratio']:.2f} {spread}")
    record(name, {"cases": cases})


def record(name: str, results: Mapping[str, object]) -> None:
    """Write results, with what they were measured on, to ``results/NAME.json``."""
    content = {
        "command": f"python -m benchmarks.{name}",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
