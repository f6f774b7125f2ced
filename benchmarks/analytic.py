"""A training step with analytic normalization, on ResNet-20: what propagating moments costs."""

from __future__ import annotations

import torch

import pyronorm as pn
from benchmarks.step import fitted, plain
from benchmarks.timing import compare, prepare, report


def main() -> None:
    prepare(threads=1)
    cases = {}
    for batch, width, rounds in ((128, 16, 12), (2, 8, 300)):
        x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
        cases[f"batch {batch}, width {width}"] = compare(
            {
                "nn.BatchNorm2d, plain step": plain(width, x, y),
                "pn.fit, batch/mean-field": fitted(width, x, y),
                "pn.fit, weight/mean-field": fitted(
                    width, x, y, normalizer=pn.normalizers.Weight()
                ),
                "pn.fit, analytic/mean-field": fitted(
                    width, x, y, normalizer=pn.normalizers.Analytic()
                ),
            },
            rounds,
        )
    report("analytic", cases)


if __name__ == "__main__":
    main()
