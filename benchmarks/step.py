"""A training step: SVI over all statistics against plain batch normalization, on ResNet-20."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO

import pyronorm as pn
from benchmarks.resnet import ResNet20
from benchmarks.timing import compare, prepare, report
from pyronorm.infer.batch import MiniBatch

NUM_DATA = 50_000


def plain(width: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[], float]:
    """An ordinary training step with nn.BatchNorm2d."""
    network = ResNet20(width)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def build(width: int, guide=pn.guides.MeanField, normalizer=None):
    """A converted ResNet-20 and a guide."""
    network = pn.convert(ResNet20(width), normalizer, example_input=torch.randn(2, 3, 32, 32))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), NUM_DATA)
    return model, guide(model)


def fitted(width: int, x: torch.Tensor, y: torch.Tensor, **options) -> Callable[[], float]:
    """The step that ``pn.fit`` takes."""
    model, guide = build(width, **options)
    trainer = pn.Trainer(
        model,
        guide,
        [(x, y)],
        optimization=pn.Optimization(
            optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
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


def main() -> None:
    prepare()
    cases = {}
    for batch, width, rounds in ((128, 16, 30), (2, 8, 300)):
        x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
        cases[f"batch {batch}, width {width}"] = compare(
            {
                "nn.BatchNorm2d, plain step": plain(width, x, y),
                "pn.fit, batch/mean-field": fitted(width, x, y),
                "pn.fit, batch/point": fitted(width, x, y, guide=pn.guides.Point),
                "pn.fit, group/mean-field": fitted(width, x, y, normalizer=pn.normalizers.Group(4)),
                "pn.fit, weight/mean-field": fitted(
                    width, x, y, normalizer=pn.normalizers.Weight()
                ),
                "pn.fit, analytic/mean-field": fitted(
                    width, x, y, normalizer=pn.normalizers.Analytic()
                ),
            },
            rounds,
        )
        pyro.clear_param_store()  # where SVI finds its parameters
        cases[f"batch {batch}, width {width}, pyro.infer.SVI"] = compare(
            {
                "nn.BatchNorm2d, plain step": plain(width, x, y),
                "pyro.infer.SVI, batch/mean-field": svi(width, x, y),
            },
            rounds,
        )
    report("step", cases)


if __name__ == "__main__":
    main()
