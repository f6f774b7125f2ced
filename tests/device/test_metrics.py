"""Metrics take predictions and targets wherever these are, and give what they give on the CPU."""

from __future__ import annotations

import pytest
import torch

from pyronorm import diagnostics
from tests.simulated_device import DEVICE


def probabilities() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(20, 3).softmax(-1), torch.randint(3, (20,))


def regression() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(4, 20), torch.rand(20) + 0.5, torch.randn(20)


METRICS = {
    "classification_metrics": (diagnostics.classification_metrics, probabilities),
    "adaptive_ece": (diagnostics.adaptive_ece, probabilities),
    "regression_metrics": (
        diagnostics.regression_metrics,
        lambda: (torch.randn(20), torch.randn(20)),
    ),
    "selective_risk": (
        lambda *scores: diagnostics.selective_risk(*scores).aurc,
        lambda: (torch.rand(20), torch.rand(20)),
    ),
    "out_of_distribution": (
        diagnostics.out_of_distribution,
        lambda: (torch.rand(20), torch.rand(15)),
    ),
    "crps_normal_mixture": (
        lambda *parts: diagnostics.crps_normal_mixture(*parts).mean().item(),
        regression,
    ),
    "crps_samples": (
        lambda samples, y: diagnostics.crps_samples(samples, y).mean().item(),
        lambda: (torch.randn(4, 20), torch.randn(20)),
    ),
    "probabilistic_regression_metrics": (
        diagnostics.probabilistic_regression_metrics,
        regression,
    ),
    "compare_draws": (
        lambda *draws: diagnostics.compare_draws(*draws).sliced_wasserstein,
        lambda: (torch.randn(20, 3), torch.randn(30, 3)),
    ),
}


@pytest.mark.parametrize("there", ["all", "predictions", "targets"])
@pytest.mark.parametrize("name", METRICS)
def test_as_on_the_cpu(simulated, name, there):
    metric, make = METRICS[name]
    arguments = make()
    last = len(arguments) - 1
    moved = [
        value.to(DEVICE) if there == "all" or (position == last) == (there == "targets") else value
        for position, value in enumerate(arguments)
    ]
    assert metric(*moved) == pytest.approx(metric(*arguments))
