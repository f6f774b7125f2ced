"""Gradient variance and cost of several draws per mini-batch, on digits.

For one mini-batch of 64 and a model trained for some epochs: the variance of the stochastic gradient
over repetitions with ``draws=K``, relative to ``draws=1``, and the time of a step.
"""

from __future__ import annotations

import json
import time

import torch
from pyro.infer import TraceMeanField_ELBO

import pyronorm as pn
from benchmarks.timing import RESULTS, prepare

REPEATS = 100
DRAWS = (1, 4, 16, 64)


def measure(model, guide, x, y, draws: int) -> tuple[float, float, float]:
    """Variance of the guide's and of the network's gradient, and milliseconds per gradient."""
    model.draws = draws
    parts = [list(guide.parameters()), [p for p in model.parameters() if p.requires_grad]]
    rows: list[list[torch.Tensor]] = [[], []]
    start = time.perf_counter()
    for _ in range(REPEATS):
        loss = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y)
        gradients = torch.autograd.grad(loss, [p for part in parts for p in part])
        split = len(parts[0])
        for row, some in zip(rows, (gradients[:split], gradients[split:]), strict=True):
            row.append(torch.cat([g.flatten() for g in some]))
    milliseconds = 1e3 * (time.perf_counter() - start) / REPEATS
    variances = [torch.stack(row).var(0).sum().item() for row in rows]
    return variances[0], variances[1], milliseconds


def main() -> None:
    prepare()
    data = pn.datasets.load("digits")
    cases = {}
    for name, normalizer in (
        ("group", pn.normalizers.Group(8)),
        ("weight", pn.normalizers.Weight()),
    ):
        for epochs in (1, 5, 15):
            torch.manual_seed(0)
            network = pn.convert(
                pn.networks.SmallConvNet(), normalizer, example_input=data.train.x[:2]
            )
            if name == "weight":
                pn.data_dependent_start(network, data.train.x[:512])
            prior = pn.priors.BatchNoise(32)
            categorical = pn.likelihoods.Categorical()
            model = pn.NormalizationModel(network, categorical, len(data.train.y), prior)
            guide = pn.guides.MeanField.from_batch_size(model, 32)
            pn.fit(model, guide, tuple(data.train), epochs=epochs, batch_size=64, progress=False)
            x, y = data.train.x[:64], data.train.y[:64]
            base = measure(model, guide, x, y, 1)
            rows = {}
            for draws in DRAWS:
                guide_var, network_var, ms = measure(model, guide, x, y, draws)
                rows[draws] = {
                    "guide_gradient_variance": round(guide_var / base[0], 3),
                    "network_gradient_variance": round(network_var / base[1], 3),
                    "time": round(ms / base[2], 2),
                }
                print(f"{name} after {epochs} epochs, draws={draws}: {rows[draws]}")
            cases[f"{name}/mean-field after {epochs} epochs"] = rows
    record = {"command": "python -m benchmarks.draws", "repeats": REPEATS, "cases": cases}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "draws.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
