"""Two versions of the library side by side: a training step, prediction, a statistics bank.

    python -m benchmarks.versions OLD [NEW]

OLD and NEW are checkouts (NEW is this one unless given). Each runs in a process of its own, and the two
take turns within every round, so that what the machine does meanwhile happens to both.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def functions() -> dict[str, Callable[[], object]]:
    """What is timed, by the interface of whichever version is imported."""
    import torch

    import pyronorm as pn
    from benchmarks.resnet import ResNet20
    from benchmarks.step import fitted, plain

    torch.manual_seed(0)
    kinds = getattr(pn, "normalizers", None) or pn.layers
    found: dict[str, Callable[[], object]] = {}
    for batch, width in ((128, 16), (2, 8)):
        x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
        case = f"step, batch {batch}, width {width}"
        found[f"{case}: plain"] = plain(width, x, y)
        found[f"{case}: batch/mean-field"] = fitted(width, x, y)
        found[f"{case}: batch/point"] = fitted(width, x, y, guide=pn.guides.Point)
        found[f"{case}: group/mean-field"] = fitted(width, x, y, normalizer=kinds.Group(4))
        found[f"{case}: weight/mean-field"] = fitted(width, x, y, normalizer=kinds.Weight())
        found[f"{case}: analytic/mean-field"] = fitted(width, x, y, normalizer=kinds.Analytic())
    for images in (8, 128):
        converted = pn.convert(ResNet20().eval())
        pn.trust_statistics(converted)
        model = pn.NormalizationModel(converted, pn.likelihoods.Categorical(), 50_000)
        guide = pn.guides.MeanField(model)
        x = torch.randn(images, 3, 32, 32)
        found[f"predict, 32 draws of {images} images"] = lambda m=model, g=guide, x=x: pn.predict(
            m, g, x, 32
        )
    for batch in (128, 32):
        converted = pn.convert(ResNet20().eval())
        pn.trust_statistics(converted)
        batches = [torch.randn(batch, 3, 32, 32) for _ in range(8)]
        found[f"bank, 8 batches of {batch}"] = lambda c=converted, b=batches: pn.collect_bank(c, b)
    return found


def work(threads: int) -> None:
    """Time what standard input names, a line for a line."""
    import torch

    torch.set_num_threads(threads)
    known = functions()
    print("\t".join(known), flush=True)
    for line in sys.stdin:
        function = known[line.strip()]
        start = time.perf_counter()
        function()
        print(time.perf_counter() - start, flush=True)


class Version:
    """A checkout at work in a process of its own."""

    def __init__(self, checkout: Path, threads: int) -> None:
        from benchmarks.timing import KEEP_MEMORY

        command = [sys.executable, str(HERE / "benchmarks" / "versions.py")]
        self.process = subprocess.Popen(
            [*command, "--worker", str(checkout), "--threads", str(threads)],
            cwd=checkout,
            env=os.environ | KEEP_MEMORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names = self._read().split("\t")

    def __call__(self, name: str) -> float:
        """Seconds that one call takes."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?", default=HERE)
    parser.add_argument("--seconds", type=float, default=20.0, help="per case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker is not None:
        sys.path[0] = str(options.worker.resolve())
        work(options.threads)
        return
    if options.old is None:
        parser.error("give the checkout to compare with")
    from benchmarks.timing import record

    versions = [Version(path.resolve(), options.threads) for path in (options.old, options.new)]
    rows = {}
    for name in versions[1].names:
        times: tuple[list[float], list[float]] = ([], [])
        for version in versions:
            version(name)
        start = time.perf_counter()
        while time.perf_counter() - start < options.seconds or len(times[0]) < 5:
            for which in random.sample((0, 1), 2):
                times[which].append(versions[which](name))
        ratios = [b / a for a, b in zip(*times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "old_ms": round(1e3 * statistics.median(times[0]), 3),
            "new_ms": round(1e3 * statistics.median(times[1]), 3),
            "ratio": round(middle, 3),
            "ratio_low": round(low, 3),
            "ratio_high": round(high, 3),
            "rounds": len(ratios),
        }
        print(
            f"{name:48s}{middle:7.3f}  ({low:.3f} to {high:.3f}, {len(ratios)} rounds)", flush=True
        )
    commits = [
        subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=path,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        for path in (options.old, options.new)
    ]
    record("versions", {"old": commits[0], "new": commits[1], "cases": rows})


if __name__ == "__main__":
    main()
