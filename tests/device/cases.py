"""Models on a small convolutional network: every normalizer, prior and likelihood."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from pyronorm import NormalizationModel, convert, estimate_population_statistics
from pyronorm.likelihoods import Bernoulli, Categorical, Likelihood, Normal
from pyronorm.priors import BatchNoise, HierarchicalBatchNoise, Prior, ScaleInvariant, Standard
from tests.normalizers.cases import NORMALIZERS
from tests.simulated_device import DEVICE

PRIORS: dict[str, Prior] = {
    "BatchNoise": BatchNoise(16.0),
    "Standard": Standard(0.3, 0.3),
    "ScaleInvariant": ScaleInvariant(),
    "Hierarchical": HierarchicalBatchNoise(16.0, 3.0),
}
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "Categorical": Categorical,
    "Bernoulli": Bernoulli,
    "Normal": lambda: Normal(0.5, learned=True),
}
NUM_DATA = 24


def make_data(likelihood: str = "Categorical", num: int = NUM_DATA) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 2, 5, 4, generator=generator)
    y = torch.randint(3, (num,), generator=generator)
    if likelihood == "Bernoulli":
        return x, (y[:, None] == torch.arange(3)).float()
    if likelihood == "Normal":
        return x, torch.randn(num, 3, generator=generator)
    return x, y


def make_model(
    normalizer: str = "Batch", prior: str = "BatchNoise", likelihood: str = "Categorical"
) -> NormalizationModel:
    x, _ = make_data()
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    with torch.no_grad():
        net(x)  # running statistics, for those that take them over
    network = convert(net, normalizer=NORMALIZERS[normalizer], example_input=x)
    estimate_population_statistics(network, x)
    return NormalizationModel(network, LIKELIHOODS[likelihood](), NUM_DATA, PRIORS[prior])


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


def make_fabric(device: torch.device = DEVICE) -> Fabric:
    """Lightning Fabric on the simulated device, or another one."""
    return Fabric(strategy=SingleDeviceStrategy(device, accelerator=_Accelerator()))
