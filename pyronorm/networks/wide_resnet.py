"""Wide residual networks."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.errors import OptionError
from pyronorm.networks.parts import Norm, check_dropout, convolution, initialize, make_norm

__all__ = ["WideResNet"]


class _Block(nn.Module):
    """Normalization and ReLU before each of two 3x3 convolutions, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, inputs)
        self.conv1 = convolution(inputs, outputs, 3, norm, stride=stride, padding=1)
        self.norm2 = make_norm(norm, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(outputs, outputs, 3, norm, padding=1)
        self.shortcut: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.shortcut = convolution(inputs, outputs, 1, norm, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x).relu()
        # A shortcut that is a convolution takes the normalized input, the identity does not.
        way = x if self.shortcut is None else self.shortcut(y)
        y = self.dropout(self.norm2(self.conv1(y)).relu())
        total: Tensor = way + self.conv2(y)
        return total


class WideResNet(nn.Module):
    """WRN-28-10 and others: normalization before the convolutions, three wide stages.

    With 10 classes and 3 input channels WRN-28-10 has 36,479,194 parameters, WRN-16-4 2,748,890.

    Args:
        depth: ``6 n + 4`` layers, ``n`` blocks per stage.
        widen_factor: ``k``: the stages have ``16 k``, ``32 k`` and ``64 k`` channels.
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: makes the normalization of so many channels; None for none.
        dropout: rate between the two convolutions of a block; 0.3 in the paper.

    Shape:
        - input: ``(batch, in_channels, height, width)``
        - output: ``(batch, num_classes)``

    Raises:
        OptionError: if there is no such depth or factor, or ``dropout`` is outside of [0, 1).

    Source: Zagoruyko & Komodakis, "Wide Residual Networks" (BMVC 2016), table 1.
    """

    @checked
    def __init__(
        self,
        depth: Count = 28,
        widen_factor: Count = 10,
        num_classes: Count = 10,
        in_channels: Count = 3,
        norm: Norm = nn.BatchNorm2d,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_dropout("WideResNet", dropout=dropout)
        if depth < 10 or depth % 6 != 4 or widen_factor < 1:
            raise OptionError(
                "WideResNet: depth must be 6 n + 4 (16, 28, ...) and widen_factor positive, got "
                f"{depth} and {widen_factor}."
            )
        self.conv1 = convolution(in_channels, 16, 3, norm, padding=1)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * widen_factor * 2**stage
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_Block(inputs, outputs, stride, norm, dropout))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = make_norm(norm, inputs)
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        x = self.norm(self.blocks(self.conv1(x))).relu()
        logits: Tensor = self.fc(x.mean((-2, -1)))
        return logits
