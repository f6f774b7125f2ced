"""Networks for the tests: public layer structures, small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Residual block of ResNet-18/20."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """CIFAR-style residual network; depth 6 * blocks + 2."""

    def __init__(self, width: int = 4, blocks: int = 1, classes: int = 3, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = norm(width)
        stages = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(inputs, outputs, stride, norm))
                inputs = outputs
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layers(x).mean((2, 3)))


def mlp(inputs: int = 5, hidden: int = 6, outputs: int = 3, norm=nn.BatchNorm1d) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        norm(hidden),
        nn.Tanh(),
        nn.Linear(hidden, 4),
        norm(4),
        nn.Tanh(),
        nn.Linear(4, outputs),
    )


def conv_net(dims: int, norm=None, outputs: int = 3) -> nn.Sequential:
    """Two convolutions with normalization over 1, 2 or 3 spatial axes."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = norm or (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    return nn.Sequential(
        conv(2, 4, 3, padding=1),
        norm(4),
        nn.ReLU(),
        conv(4, 6, 3, padding=1),
        norm(6),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(6, outputs),
    )


SHAPES = {1: (2, 7), 2: (2, 5, 6), 3: (2, 3, 4, 5)}
"""Input shape of ``conv_net`` by number of spatial axes, unequal everywhere."""


def train_briefly(network: nn.Module, shape: tuple[int, ...], steps: int = 20) -> nn.Module:
    """Move weights and running statistics away from their initial values."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    network.train()
    for _ in range(steps):
        x = torch.randn(16, *shape) * torch.linspace(0.5, 2, shape[0]).view(
            -1, *(1,) * (len(shape) - 1)
        ) + torch.linspace(-1, 1, shape[0]).view(-1, *(1,) * (len(shape) - 1))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    # Let the running averages settle for the final weights.
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return network


class FrozenBatchNorm2d(nn.Module):
    """Looks like that of torchvision: everything is a buffer, and batches are not counted."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.view(shape) * (self.running_var.view(shape) + self.eps).rsqrt()
        return x * scale + self.bias.view(shape) - self.running_mean.view(shape) * scale


FrozenBatchNorm2d.__module__ = "torchvision.ops.misc"


def frozen_net() -> nn.Sequential:
    def norm(channels: int) -> nn.Module:
        layer = FrozenBatchNorm2d(channels, eps=1e-3)
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        return layer

    return conv_net(2, norm)


def change(network: nn.Module) -> None:
    """The least change of a weight of :func:`conv_net` in two dimensions."""
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1e-6
