"""Three convolutions: the network of the digits."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, checked

__all__ = ["SmallConvNet"]


class SmallConvNet(nn.Module):
    """Three 3x3 convolutions with batch normalization, then a linear layer.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        width: channels of the first convolution; the others have twice as many.

    Shape:
        - input: ``(batch, in_channels, height, width)``, any size from 4x4
        - output: ``(batch, num_classes)``
    """

    @checked
    def __init__(self, num_classes: Count = 10, in_channels: Count = 1, width: Count = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        logits: Tensor = self.fc(x.mean((-2, -1)))
        return logits
