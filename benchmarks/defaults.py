"""Do the defaults do harm? A guide and a prior as they come, against plain batch normalization.

Four tasks on data that scikit-learn has, five seeds, everything at its default: ``pn.convert``,
``NormalizationModel`` without a prior, ``MeanField(model)``, ``pn.fit``. Paired over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn

import pyronorm as pn
from benchmarks.timing import RESULTS, prepare
from pyronorm.likelihoods import Likelihood

SEEDS = range(5)
Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """Data by seed, a network, a likelihood, and how long to train."""

    data: Callable[[int], tuple[Pairs, Pairs]]
    network: Callable[[], nn.Module]
    likelihood: type[Likelihood]
    epochs: int


def split(x: Tensor, y: Tensor, num_train: int, seed: int) -> tuple[Pairs, Pairs]:
    """Training and test examples, at random."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:num_train], order[num_train:]
    return (x[train], y[train]), (x[test], y[test])


def digits(num_train: int, seed: int) -> tuple[Pairs, Pairs]:
    """scikit-learn's digits."""
    data = pn.datasets.load("digits")
    x, y = (torch.cat(parts) for parts in zip(data.train, data.test, strict=True))
    return split(x, y, num_train, seed)


def table(load: Callable[..., tuple], seed: int) -> tuple[Pairs, Pairs]:
    """A table with columns, and real targets, standardized by the training examples."""
    x, y = (torch.as_tensor(part) for part in load(return_X_y=True))
    if y.is_floating_point():
        y = y[:, None]
    (x, y), (x_test, y_test) = split(x.double(), y, 7 * len(x) // 10, seed)
    mean, std = x.mean(0), x.std(0)
    if y.is_floating_point():
        y, y_test = (y - y.mean()) / y.std(), (y_test - y.mean()) / y.std()
        y, y_test = y.float(), y_test.float()
    return (((x - mean) / std).float(), y), (((x_test - mean) / std).float(), y_test)


def mlp(inputs: int, outputs: int) -> nn.Module:
    """Two hidden layers with batch normalization."""
    layers: list[nn.Module] = []
    for size in (inputs, 64):
        layers += [nn.Linear(size, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, outputs))


TASKS = {
    "digits": Task(
        lambda seed: digits(1_258, seed), pn.networks.SmallConvNet, pn.likelihoods.Categorical, 30
    ),
    "digits, 300 images": Task(
        lambda seed: digits(300, seed), pn.networks.SmallConvNet, pn.likelihoods.Categorical, 60
    ),
    "breast cancer": Task(
        lambda seed: table(load_breast_cancer, seed),
        lambda: mlp(30, 2),
        pn.likelihoods.Categorical,
        60,
    ),
    "diabetes": Task(
        lambda seed: table(load_diabetes, seed), lambda: mlp(10, 1), pn.likelihoods.Normal, 60
    ),
}


def run(task: Task, name: str, seed: int) -> dict[str, float]:
    """Train and evaluate."""
    train, test = task.data(seed)
    torch.manual_seed(seed)
    network = pn.convert(task.network())
    prior = pn.priors.Standard() if name == "prior Standard" else None
    model = pn.NormalizationModel(network, task.likelihood(), num_data=len(train[1]), prior=prior)
    guide = pn.guides.Point(model) if name == "plain" else pn.guides.MeanField(model)
    pn.fit(model, guide, train, epochs=task.epochs, batch_size=32, seed=seed, progress=False)
    posterior: object = guide
    if name == "defaults, refreshed":
        posterior = pn.refresh_draws(model, guide, train, num_samples=32, seed=seed)
    return dict(pn.evaluate(model, posterior, test, num_samples=32, seed=seed))


def main() -> None:
    prepare(threads=1)
    names = ("plain", "defaults", "defaults, refreshed", "prior Standard")
    cases: dict[str, dict[str, dict[str, object]]] = {}
    for title, task in TASKS.items():
        found = {name: [run(task, name, seed) for seed in SEEDS] for name in names}
        cases[title] = {}
        for name in names:
            row: dict[str, object] = {}
            for metric in ("nll", "ece", "accuracy", "crps"):
                if metric not in found[name][0]:
                    continue
                values = [result[metric] for result in found[name]]
                row[metric] = sum(values) / len(values)
                if name != "plain":
                    differences = torch.tensor(
                        [a - b[metric] for a, b in zip(values, found["plain"], strict=True)]
                    ).double()
                    half = (
                        stats.t.ppf(0.975, len(values) - 1) * differences.std() / len(values) ** 0.5
                    )
                    row[f"{metric}_difference"] = differences.mean().item()
                    row[f"{metric}_half_width"] = half.item()
            cases[title][name] = row
            print(title, name, row, flush=True)
    content = {"command": "python -m benchmarks.defaults", "seeds": len(SEEDS), "cases": cases}
    (RESULTS / "defaults.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
