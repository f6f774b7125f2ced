"""LeNet-5."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, Natural, checked
from pyronorm.errors import OptionError
from pyronorm.networks.parts import Norm, check_dropout, convolution, initialize, make_norm

__all__ = ["LeNet5"]


class LeNet5(nn.Module):
    """Two 5x5 convolutions with pooling, then hidden layers, each with normalization and ReLU.

    61,706 parameters without normalization, for 10 classes. :meth:`caffe` has 431,080.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: makes the normalization of so many channels; None for none.
        dropout: rate after each convolution and each hidden layer, as Gal & Ghahramani, "Bayesian
            Convolutional Neural Networks with Bernoulli Approximate Variational Inference" (2015).
        channels: of the two convolutions.
        hidden: units of the hidden layers.
        padding: of the first convolution: 2 makes 28x28 the 32x32 of the paper.
        image_size: height and width of the images.

    Shape:
        - input: ``(batch, in_channels, image_size, image_size)``
        - output: ``(batch, num_classes)``

    Raises:
        OptionError: if the images are too small, or ``dropout`` outside of [0, 1).

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document
    Recognition" (Proc. IEEE 1998).

    Departs from the paper: ReLU, maximum pooling, all channels connected, a linear output; as is
    usual today. As in the paper the first hidden layer is a convolution over what is left of the image
    (C5), and so is the second (1x1), so that one ``norm`` serves all layers.
    """

    @checked
    def __init__(
        self,
        num_classes: Count = 10,
        in_channels: Count = 1,
        norm: Norm = nn.BatchNorm2d,
        dropout: float = 0.0,
        *,
        channels: tuple[int, int] = (6, 16),
        hidden: Sequence[Count] = (120, 84),
        padding: Natural = 2,
        image_size: Count = 28,
    ) -> None:
        super().__init__()
        check_dropout("LeNet5", dropout=dropout)
        left = ((image_size + 2 * padding - 4) // 2 - 4) // 2
        if left < 1:
            raise OptionError(f"LeNet5: images of {image_size}x{image_size} are too small.")
        layers: list[nn.Module] = []
        inputs = in_channels
        for outputs, pad in zip(channels, (padding, 0), strict=True):
            layers += [
                convolution(inputs, outputs, 5, norm, padding=pad),
                make_norm(norm, outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Dropout(dropout),
            ]
            inputs = outputs
        for outputs in hidden:
            layers += [
                convolution(inputs, outputs, left, norm),
                make_norm(norm, outputs),
                nn.ReLU(),
                nn.Dropout(dropout),
            ]
            inputs, left = outputs, 1
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.fc = nn.Linear(inputs * left * left, num_classes)
        initialize(self)

    @classmethod
    @checked
    def caffe(
        cls,
        num_classes: Count = 10,
        in_channels: Count = 1,
        norm: Norm = nn.BatchNorm2d,
        dropout: float = 0.0,
        *,
        image_size: Count = 28,
    ) -> LeNet5:
        """The larger one of Caffe's MNIST example, which papers on dropout use: 20, 50, 500.

        Args:
            num_classes: length of the output.
            in_channels: channels of the images.
            norm: makes the normalization of so many channels; None for none.
            dropout: rate after each convolution and each hidden layer.
            image_size: height and width of the images.
        """
        return cls(
            num_classes,
            in_channels,
            norm,
            dropout,
            channels=(20, 50),
            hidden=(500,),
            padding=0,
            image_size=image_size,
        )

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class logits."""
        logits: Tensor = self.fc(self.layers(x))
        return logits
