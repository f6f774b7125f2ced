"""VGG."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, Positive, checked
from pyronorm.errors import OptionError
from pyronorm.networks.parts import Norm, check_dropout, convolution, initialize, make_norm

__all__ = ["VGG11"]

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(nn.Module):
    """VGG-11 for small images: eight 3x3 convolutions in five stages with pooling, a linear layer.

    9,225,610 parameters without normalization, for 10 classes and 3 input channels.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: makes the normalization of so many channels; None for none.
        dropout: rate after each stage.
        width: multiplies the channels, to be rounded.

    Shape:
        - input: ``(batch, in_channels, height, width)``, any size from 32x32
        - output: ``(batch, num_classes)``

    Raises:
        OptionError: if ``width`` leaves no channel, or ``dropout`` is outside of [0, 1).

    Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
    (ICLR 2015), table 1, configuration A.

    Departs from the paper: one linear layer behind the average over positions instead of three, as is
    usual on CIFAR, and dropout after each stage instead of between them.
    """

    @checked
    def __init__(
        self,
        num_classes: Count = 10,
        in_channels: Count = 3,
        norm: Norm = nn.BatchNorm2d,
        dropout: float = 0.0,
        *,
        width: Positive = 1.0,
    ) -> None:
        super().__init__()
        check_dropout("VGG11", dropout=dropout)
        if round(64 * width) < 1:
            raise OptionError(f"VGG11: width={width} leaves no channel.")
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage in _STAGES:
            for channels in stage:
                outputs = round(channels * width)
                layers += [
                    convolution(inputs, outputs, 3, norm, padding=1),
                    make_norm(norm, outputs),
                    nn.ReLU(),
                ]
                inputs = outputs
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        logits: Tensor = self.fc(self.layers(x).mean((-2, -1)))
        return logits
