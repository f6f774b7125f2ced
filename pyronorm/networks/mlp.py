"""Fully connected networks, for tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from pyronorm.checks import Count, checked
from pyronorm.networks.parts import Norm, check_dropout, make_norm

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear layers, each with normalization, ReLU and dropout, then a linear layer.

    Two hidden layers of 50 are the network of the UCI protocol. With 13 inputs, one output and no
    normalization it has 3,301 parameters.

    Args:
        in_features: columns of the input.
        out_features: length of the output: targets, or classes.
        hidden: units of the hidden layers.
        norm: makes the normalization of so many units; None for none.
        dropout: rate after each hidden layer.

    Shape:
        - input: ``(batch, in_features)``
        - output: ``(batch, out_features)``

    Raises:
        OptionError: if a size is below 1, or ``dropout`` outside of [0, 1).

    Source: Hernández-Lobato & Adams, "Probabilistic Backpropagation for Scalable Learning of Bayesian
    Neural Networks" (ICML 2015), one layer of 50; Teye et al. (ICML 2018), two.

    Departs from the paper: Gal & Ghahramani (2016) also drop inputs.
    """

    @checked
    def __init__(
        self,
        in_features: Count,
        out_features: Count = 1,
        hidden: Sequence[Count] = (50, 50),
        norm: Norm = nn.BatchNorm1d,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [in_features, *hidden]
        check_dropout("MLP", dropout=dropout)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            linear = nn.Linear(inputs, outputs, bias=norm in (None, nn.Identity))
            layers += [linear, make_norm(norm, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(sizes[-1], out_features)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch out"]:
        """The outputs."""
        output: Tensor = self.fc(self.layers(x))
        return output
