"""Collecting a statistics bank against as many evaluation passes, on ResNet-20."""

from __future__ import annotations

import torch

import pyronorm as pn
from benchmarks.resnet import ResNet20
from benchmarks.timing import compare, prepare, report

ROWS = 8


def main() -> None:
    prepare()
    cases = {}
    for batch, rounds in ((128, 10), (32, 30)):
        torch.manual_seed(0)
        network = ResNet20().eval()
        converted = pn.convert(network)
        pn.trust_statistics(converted)
        batches = [torch.randn(batch, 3, 32, 32) for _ in range(ROWS)]

        @torch.no_grad()
        def passes(network=network, batches=batches) -> None:
            for x in batches:
                network(x)

        trained = ResNet20().train()

        @torch.no_grad()
        def training_passes(network=trained, batches=batches) -> None:
            for x in batches:
                network(x)

        cases[f"{ROWS} batches of {batch}"] = compare(
            {
                "evaluation passes of the plain network": passes,
                "training passes of the plain network": training_passes,
                "pn.collect_bank": lambda c=converted, b=batches: pn.collect_bank(c, b),
                "pn.estimate_population_statistics": lambda c=converted, b=batches: (
                    pn.estimate_population_statistics(c, b)
                ),
            },
            rounds,
        )
    report("bank", cases)


if __name__ == "__main__":
    main()
