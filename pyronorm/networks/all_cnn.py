"""All-CNN."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, Positive, checked
from pyronorm.errors import OptionError
from pyronorm.networks.parts import Norm, check_dropout, convolution, initialize, make_norm

__all__ = ["AllCNN"]


class AllCNN(nn.Module):
    """All-CNN-C: eight convolutions with normalization and ReLU, two of them with stride 2.

    3x3 with 96 channels (three, the last with stride 2), 3x3 with 192 (three, likewise), 3x3 with 192
    without padding, 1x1 with 192, 1x1 with one per class, averaged over positions. 1,369,738
    parameters without normalization, for 10 classes; 22,042 with ``width=0.125``.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: makes the normalization of so many channels; None for none.
        dropout: rate after each convolution with stride 2; 0.5 in the paper.
        input_dropout: rate of dropped input values; 0.2 in the paper.
        width: multiplies the channels, to be rounded.

    Shape:
        - input: ``(batch, in_channels, height, width)``, any size from 9x9
        - output: ``(batch, num_classes)``

    Raises:
        OptionError: if ``width`` leaves no channel, or a rate of dropout is outside of [0, 1).

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller, "Striving for Simplicity: The All
    Convolutional Net" (ICLR 2015 workshop), table 1, model C of section 3.2.

    Departs from the paper: no ReLU on the logits; the last 1x1 convolution is applied after the
    average instead of before, which is then the same.
    """

    @checked
    def __init__(
        self,
        num_classes: Count = 10,
        in_channels: Count = 3,
        norm: Norm = nn.BatchNorm2d,
        dropout: float = 0.0,
        *,
        input_dropout: float = 0.0,
        width: Positive = 1.0,
    ) -> None:
        super().__init__()
        check_dropout("AllCNN", dropout=dropout, input_dropout=input_dropout)
        small, large = round(96 * width), round(192 * width)
        if small < 1:
            raise OptionError(f"AllCNN: width={width} leaves no channel.")
        layers: list[nn.Module] = [nn.Dropout(input_dropout)]
        inputs = in_channels
        for outputs, kernel, stride, padding in (
            (small, 3, 1, 1),
            (small, 3, 1, 1),
            (small, 3, 2, 1),
            (large, 3, 1, 1),
            (large, 3, 1, 1),
            (large, 3, 2, 1),
            (large, 3, 1, 0),
            (large, 1, 1, 0),
        ):
            layers += [
                convolution(inputs, outputs, kernel, norm, stride=stride, padding=padding),
                make_norm(norm, outputs),
                nn.ReLU(),
            ]
            if stride == 2:
                layers.append(nn.Dropout(dropout))
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        logits: Tensor = self.fc(self.layers(x).mean((-2, -1)))
        return logits
