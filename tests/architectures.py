"""Networks as people have them, written from their public layer structures; small, but whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import ResNet


class Bottleneck(nn.Module):
    """Residual block of ResNet-50 (He et al. 2016): 1x1, 3x3, 1x1 convolutions."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class BottleneckResNet(nn.Module):
    """ImageNet-style residual network; ResNet-50 with the defaults but for the classes."""

    def __init__(self, blocks=(3, 4, 6, 3), width: int = 64, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(inputs, width * 2**stage, stride))
                inputs = Bottleneck.expansion * width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


class DenseLayer(nn.Module):
    """DenseNet (Huang et al. 2017): normalize first, add new channels to the old ones."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], dim=1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self, growth: int = 4, layers: int = 3, classes: int = 3) -> None:
        super().__init__()
        channels = 2 * growth
        features: dict[str, nn.Module] = {"conv0": nn.Conv2d(3, channels, 3, padding=1, bias=False)}
        for block in range(2):
            for layer in range(layers):
                features[f"block{block}_layer{layer}"] = DenseLayer(channels, growth)
                channels += growth
            if block == 0:
                features["transition"] = nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(channels, channels // 2, 1, bias=False),
                    nn.AvgPool2d(2),
                )
                channels //= 2
        features["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.ModuleDict(features)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.features.values():
            x = layer(x)
        return self.classifier(F.relu(x, inplace=True).mean((2, 3)))


class UNet3d(nn.Module):
    """Volumetric segmentation (Cicek et al. 2016): down, up by transposed convolution, skips."""

    def __init__(self, width: int = 4, depth: int = 2, inputs: int = 1, classes: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            self._double(a, b) for a, b in zip([inputs, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.join = nn.ModuleList(self._double(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv3d(width, classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            x = join(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


class InvertedResidual(nn.Module):
    """MobileNet-v2 (Sandler et al. 2018): expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 3) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.use_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(True)
            ),
            nn.Sequential(
                nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(True),
            ),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


def mobile_net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(True)),
        InvertedResidual(6, 6, 1),
        InvertedResidual(6, 8, 2),
        InvertedResidual(8, 8, 1),
        nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, classes),
    )


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al. 2021): patches, class token, pre-norm encoder."""

    def __init__(self, dim: int = 12, heads: int = 2, blocks: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 1 + 12, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, blocks, nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class TemporalBlock(nn.Module):
    """Causal dilated convolutions (Bai et al. 2018), batch normalized."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.conv1 = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, dilation=dilation)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.dropout = nn.Dropout(0.1)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(F.relu(self.norm1(self.conv1(self.pad(x)))))
        y = self.dropout(F.relu(self.norm2(self.conv2(self.pad(y)))))
        return F.relu(y + self.shortcut(x))


class TemporalNet(nn.Module):
    """Classifies a sequence by its last position."""

    def __init__(self, channels=(2, 6, 6, 8), classes: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(TemporalBlock(a, b, 2**i) for i, (a, b) in enumerate(pairwise(channels)))
        )
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[..., -1])


def perceptron(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(7, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(12, 9, bias=False),
        nn.BatchNorm1d(9),
        nn.LeakyReLU(0.1),
        nn.Linear(9, classes),
    )


class GatedBlock(nn.Module):
    """Pre-norm block of recent language models: RMS norm, causal attention, gated MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.RMSNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim, bias=False)
        self.up = nn.Linear(dim, 2 * dim, bias=False)
        self.down = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class LanguageModel(nn.Module):
    """Classifies a sequence of tokens."""

    def __init__(self, tokens: int = 11, dim: int = 12, blocks: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim)
        self.blocks = nn.ModuleList(GatedBlock(dim, 2) for _ in range(blocks))
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, classes, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, -1])


@dataclass(frozen=True)
class Architecture:
    """A network, inputs it takes, and what is in it.

    Attributes:
        make: builds it, with random weights.
        shape: shape of one example.
        layers: number of normalization layers.
        channels: their channels.
        tokens: how many different integers the inputs are; None for real numbers.
        outputs: shape of the positions that each have a class, () for one class per example.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: int
    channels: int
    tokens: int | None = None
    outputs: tuple[int, ...] = ()

    def inputs(self, batch: int) -> Tensor:
        if self.tokens is None:
            return torch.randn(batch, *self.shape)
        return torch.randint(self.tokens, (batch, *self.shape))

    def labels(self, batch: int) -> Tensor:
        return torch.randint(3, (batch, *self.outputs))


ARCHITECTURES = {
    "ResNet, basic": Architecture(lambda: ResNet(8, 2), (3, 16, 12), 15, 280),
    "ResNet, bottleneck": Architecture(
        lambda: BottleneckResNet((1, 2, 1), 4), (3, 40, 32), 16, 332
    ),
    "ResNet-50": Architecture(BottleneckResNet, (3, 64, 48), 53, 26_560),
    "DenseNet": Architecture(DenseNet, (3, 16, 12), 14, 168),
    "U-Net 3d": Architecture(UNet3d, (1, 8, 12, 4), 10, 80, outputs=(8, 12, 4)),
    "MobileNet": Architecture(mobile_net, (3, 24, 16), 11, 164),
    "ViT": Architecture(VisionTransformer, (3, 16, 12), 5, 60),
    "temporal": Architecture(TemporalNet, (2, 23), 6, 40),
    "MLP": Architecture(perceptron, (7,), 2, 21),
    "RMS transformer": Architecture(LanguageModel, (9,), 5, 60, tokens=11),
}
