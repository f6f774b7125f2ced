"""A training step: SVI over all statistics against plain batch normalization, on ResNet-20."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO

import pyronorm as pn
from benchmarks.resnet import ResNet20
from benchmarks.timing import compare, prepare, report
from pyronorm.infer.batch import MiniBatch

NUM_DATA = 50_000


def plain(
    width: int,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    fused: bool | None = None,
    in_one_graph: bool = False,
) -> Callable[[], float]:
    """An ordinary training step with nn.BatchNorm2d."""
    network = ResNet20(width)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=fused)

    def evaluate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(x), y)

    loss = torch.compile(evaluate, fullgraph=True) if in_one_graph else evaluate

    def step() -> float:
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def build(width: int, guide=pn.guides.MeanField, normalizer=None):
    """A converted ResNet-20 and a guide."""
    network = pn.convert(ResNet20(width), normalizer, example_input=torch.randn(2, 3, 32, 32))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), NUM_DATA)
    return model, guide(model)


def fitted(
    width: int, x: torch.Tensor, y: torch.Tensor, in_one_graph: bool = False, **options
) -> Callable[[], float]:
    """The step that ``pn.fit`` takes."""
    model, guide = build(width, **options)
    trainer = pn.Trainer(
        model,
        guide,
        [(x, y)],
        optimization=pn.Optimization(
            optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.9),
            compile=in_one_graph,
        ),
    )
    model.train()
    batch = MiniBatch(x, y)

    def step() -> float:
        trainer._step(batch, 1.0)
        return trainer.loss

    return step


def svi(width: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[], float]:
    """The step of ``pyro.infer.SVI`` over the global parameter store."""
    model, guide = build(width)
    optimizer = pyro.optim.SGD({"lr": 1e-3 / NUM_DATA, "momentum": 0.9})
    engine = SVI(model, guide, optimizer, TraceMeanField_ELBO())
    return lambda: engine.step(x, y)


def compiled(width: int, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Compiled against compiled: the plain loss, and the objective of ``Optimization(compile=True)``."""
    return {
        "nn.BatchNorm2d, plain step, compiled": plain(width, x, y, in_one_graph=True),
        "the same with a fused optimizer": plain(width, x, y, fused=True, in_one_graph=True),
        "pn.fit, batch/mean-field, compiled": fitted(width, x, y, in_one_graph=True),
    }


def optimizer_steps(kind: Any, width: int, **options: Any) -> dict[str, Callable[[], object]]:
    """The optimizer's step alone, as torch chooses on a CPU, and fused, as ``pn.fit`` takes it."""

    def make(fused: bool | None) -> Callable[[], object]:
        network = ResNet20(width)
        for parameter in network.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        return kind(network.parameters(), lr=1e-3, fused=fused, **options).step

    return {f"{kind.__name__}, torch's choice": make(None), f"{kind.__name__}, fused": make(True)}


GUIDES: dict[str, dict[str, Any]] = {
    "batch/mean-field": {},
    "batch/point": {"guide": pn.guides.Point},
    "batch/fixed": {"guide": lambda model: pn.guides.BatchNoise(model, 128)},
    "batch/low-rank": {"guide": pn.guides.LowRank},
    "group/mean-field": {"normalizer": pn.normalizers.Group(4)},
    "weight/mean-field": {"normalizer": pn.normalizers.Weight()},
    "analytic/mean-field": {"normalizer": pn.normalizers.Analytic()},
}


def eager(width: int, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Plain steps, and those of ``pn.fit`` by guide and normalizer."""
    return {
        "nn.BatchNorm2d, plain step": plain(width, x, y),
        "the same with a fused optimizer": plain(width, x, y, fused=True),
        **{f"pn.fit, {key}": fitted(width, x, y, **case) for key, case in GUIDES.items()},
    }


def by_svi(width: int, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The step of ``pyro.infer.SVI``."""
    return {
        "nn.BatchNorm2d, plain step": plain(width, x, y),
        "pyro.infer.SVI, batch/mean-field": svi(width, x, y),
    }


PARTS: dict[str, Callable[..., dict[str, Callable[[], object]]]] = {
    "": eager,
    ", optimizer SGD": lambda width, x, y: optimizer_steps(torch.optim.SGD, width, momentum=0.9),
    ", optimizer Adam": lambda width, x, y: optimizer_steps(torch.optim.Adam, width),
    ", compiled": compiled,
    ", pyro.infer.SVI": by_svi,
}


def measure(
    part: str, threads: int, batch: int, width: int, rounds: int
) -> dict[str, dict[str, float]]:
    """A part of a case, in this process."""
    prepare(threads)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    return compare(PARTS[part](width, x, y), rounds)


def main() -> None:
    prepare()
    cases = {}
    # Each part in a process of its own: torch.compile has sizes as variables where it met others.
    alone = multiprocessing.get_context("spawn")
    for threads, batch, width, rounds in (
        (1, 128, 16, 8),
        (2, 128, 16, 8),
        (1, 2, 8, 300),
        (2, 2, 8, 300),
    ):
        name = f"batch {batch}, width {width}, {threads} thread{'s' * (threads > 1)}"
        for part in PARTS:
            with ProcessPoolExecutor(1, alone) as pool:
                job = pool.submit(measure, part, threads, batch, width, rounds)
                cases[name + part] = job.result()
    report("step", cases)


if __name__ == "__main__":
    main()
