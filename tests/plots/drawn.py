"""What has been drawn, as numbers."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from torch import Tensor

Predicted = tuple[Tensor, Tensor]


def legend_labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def inside(ax: Axes, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether all points are within the limits of the axes."""
    (left, right), (bottom, top) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    return bool(((x >= left) & (x <= right) & (y >= bottom) & (y <= top)).all())


def bars(container: ErrorbarContainer) -> tuple[np.ndarray, np.ndarray]:
    """Points, and the ends of their bars."""
    line, _, (segments,) = container.lines
    return line.get_xydata(), np.array([segment[:, 1] for segment in segments.get_segments()])


def predicted(n: int, classes: int, sharpness: float) -> Predicted:
    logits = sharpness * torch.randn(n, classes)
    y = torch.distributions.Categorical(logits=0.6 * logits).sample()
    return logits.softmax(-1), y
