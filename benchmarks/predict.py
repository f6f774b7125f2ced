"""Prediction: 32 posterior draws against 32 passes of the deterministic network, on ResNet-20."""

from __future__ import annotations

import torch

import pyronorm as pn
from benchmarks.resnet import ResNet20
from benchmarks.timing import compare, prepare, report

DRAWS = 32


def main() -> None:
    prepare()
    cases = {}
    for images, rounds in ((8, 30), (32, 10), (128, 7)):
        torch.manual_seed(0)
        network = ResNet20().eval()
        converted = pn.convert(network)
        pn.trust_statistics(converted)
        model = pn.NormalizationModel(converted, pn.likelihoods.Categorical(), 50_000)
        guide = pn.guides.MeanField(model)
        x = torch.randn(images, 3, 32, 32)

        @torch.no_grad()
        def passes(network=network, x=x) -> None:
            for _ in range(DRAWS):
                network(x).softmax(-1)

        def predict(chunk: int | None, model=model, guide=guide, x=x) -> None:
            model.network.samples_per_call = chunk
            pn.predict(model, guide, x, DRAWS)

        functions = {
            f"{DRAWS} passes of the plain network": passes,
            f"pn.predict, {DRAWS} draws": lambda p=predict: p(None),
            "pn.predict, one draw at a time": lambda p=predict: p(1),
        }
        if images < 128:
            functions["pn.predict, 8 draws at a time"] = lambda p=predict: p(8)
        cases[f"{images} images"] = compare(functions, rounds)
    report("predict", cases)


if __name__ == "__main__":
    main()
