"""Residual networks, for ImageNet and for CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.errors import OptionError
from pyronorm.networks.parts import Norm, check_dropout, convolution, initialize, make_norm

__all__ = ["BasicBlock", "CifarResNet", "ResNet18"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
        norm: makes the normalization of so many channels; None for none.
        dropout: rate between the convolutions (Zagoruyko & Komodakis 2016).
        shortcut: what the input goes through on its way to the sum.

    Shape:
        - input: ``(batch, inputs, height, width)``
        - output: ``(batch, outputs, height', width')``, divided by ``stride``
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        norm: Norm,
        dropout: float,
        shortcut: nn.Module,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, norm, stride=stride, padding=1)
        self.norm1 = make_norm(norm, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(outputs, outputs, 3, norm, padding=1)
        self.norm2 = make_norm(norm, outputs)
        self.shortcut = shortcut

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channels heights widths"]:
        """ReLU of the sum of both ways."""
        y = self.dropout(self.norm1(self.conv1(x)).relu())
        total: Tensor = self.norm2(self.conv2(y)) + self.shortcut(x)
        return total.relu()


class _PadChannels(nn.Module):
    """Shortcut without parameters: every second position, and channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.extra // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.extra - before))


class ResNet18(nn.Module):
    """ResNet-18: eight blocks of two 3x3 convolutions, 64 to 512 channels.

    11,689,512 parameters for 1000 classes; 11,173,962 for 10 classes with ``cifar_stem``.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: makes the normalization of so many channels; None for none.
        dropout: rate between the two convolutions of a block.
        cifar_stem: a 3x3 convolution at the input, for images of 32x32; False for the 7x7 one
            with stride 2 and the pooling of ImageNet.
        width: channels of the first convolution.

    Shape:
        - input: ``(batch, in_channels, height, width)``
        - output: ``(batch, num_classes)``

    Raises:
        OptionError: if ``dropout`` is outside of [0, 1).

    Source: He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), table 1;
    shortcuts of option B.
    """

    @checked
    def __init__(
        self,
        num_classes: Count = 10,
        in_channels: Count = 3,
        norm: Norm = nn.BatchNorm2d,
        dropout: float = 0.0,
        *,
        cifar_stem: bool = True,
        width: Count = 64,
    ) -> None:
        super().__init__()
        check_dropout("ResNet18", dropout=dropout)
        if cifar_stem:
            self.conv1 = convolution(in_channels, width, 3, norm, padding=1)
        else:
            self.conv1 = convolution(in_channels, width, 7, norm, stride=2, padding=3)
        self.norm1 = make_norm(norm, width)
        self.pool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, 2, padding=1)
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                shortcut: nn.Module = nn.Identity()
                if stride > 1:
                    conv = convolution(inputs, outputs, 1, norm, stride=stride)
                    shortcut = nn.Sequential(conv, make_norm(norm, outputs))
                blocks.append(BasicBlock(inputs, outputs, stride, norm, dropout, shortcut))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        x = self.pool(self.norm1(self.conv1(x)).relu())
        logits: Tensor = self.fc(self.blocks(x).mean((-2, -1)))
        return logits


class CifarResNet(nn.Module):
    """ResNet-20, 32, 44, ... for CIFAR: three stages of 16, 32 and 64 channels.

    With 10 classes and 3 input channels 269,722 parameters at depth 20, 464,154 at depth 32.

    Args:
        depth: ``6 n + 2`` layers, ``n`` blocks per stage.
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: makes the normalization of so many channels; None for none.
        dropout: rate between the two convolutions of a block.
        width: channels of the first stage.

    Shape:
        - input: ``(batch, in_channels, height, width)``
        - output: ``(batch, num_classes)``

    Raises:
        OptionError: if there is no such depth, or ``dropout`` is outside of [0, 1).

    Source: He, Zhang, Ren & Sun (CVPR 2016), section 4.2; shortcuts of option A, without parameters.
    """

    @checked
    def __init__(
        self,
        depth: Count = 20,
        num_classes: Count = 10,
        in_channels: Count = 3,
        norm: Norm = nn.BatchNorm2d,
        dropout: float = 0.0,
        *,
        width: Count = 16,
    ) -> None:
        super().__init__()
        check_dropout("CifarResNet", dropout=dropout)
        if depth < 8 or depth % 6 != 2:
            raise OptionError(f"CifarResNet: depth must be 6 n + 2 (20, 32, ...), got {depth}.")
        self.conv1 = convolution(in_channels, width, 3, norm, padding=1)
        self.norm1 = make_norm(norm, width)
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(depth // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                shortcut = nn.Identity() if stride == 1 else _PadChannels(inputs, outputs, stride)
                blocks.append(BasicBlock(inputs, outputs, stride, norm, dropout, shortcut))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        x = self.norm1(self.conv1(x)).relu()
        logits: Tensor = self.fc(self.blocks(x).mean((-2, -1)))
        return logits
