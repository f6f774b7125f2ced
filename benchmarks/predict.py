"""Prediction: 32 posterior draws against 32 passes of the deterministic network, on ResNet-20."""

from __future__ import annotations

import argparse

import torch

import pyronorm as pn
from benchmarks.resnet import ResNet20
from benchmarks.timing import compare, prepare, report

DRAWS = 32
ROUNDS = {8: 20, 128: 7}


def case(images: int, autocast: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Times for a batch of so many images."""
    torch.manual_seed(0)
    network = ResNet20().eval()
    converted = pn.convert(network)
    pn.trust_statistics(converted)
    model = pn.NormalizationModel(converted, pn.likelihoods.Categorical(), 50_000)
    guide = pn.guides.MeanField(model)
    x = torch.randn(images, 3, 32, 32)

    @torch.no_grad()
    def passes() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for _ in range(DRAWS):
                network(x).softmax(-1)

    def predict(together: int | None) -> None:
        model.network.samples_per_call = together
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pn.predict(model, guide, x, DRAWS)

    return compare(
        {
            f"{DRAWS} passes of the plain network": passes,
            f"pn.predict, {DRAWS} draws": lambda: predict(None),
            "pn.predict, one draw at a time": lambda: predict(1),
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=float, default=1.0, help="as a share of those by default")
    share = parser.parse_args().rounds
    prepare()
    cases = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for images, rounds in ROUNDS.items():
            for autocast in (False, True):
                name = f"{images} images, {'bfloat16, ' if autocast else ''}{threads} thread(s)"
                cases[name] = case(images, autocast, max(3, round(share * rounds)))
                print(name, cases[name], flush=True)
    report("predict", cases)


if __name__ == "__main__":
    main()
