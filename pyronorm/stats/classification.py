"""Scores of predicted probabilities of classes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.checks import checked
from pyronorm.errors import DataError, ShapeError
from pyronorm.stats.risk import risk_by_rank

__all__ = ["check_classes", "classification_metrics"]

_BINS = 15
_TOLERANCE = 1e-3  # of a sum of probabilities in float32, generously


@checked
def classification_metrics(
    probabilities: Float[Tensor, "*batch classes"],
    y: Int[Tensor, "*batch"],
    weight: Tensor | None = None,
) -> dict[str, float]:
    r"""Accuracy, negative log likelihood, calibration error, Brier score and selective risk.

    * ``accuracy``: share of examples whose most probable class is right (torchmetrics).
    * ``nll``: :math:`-\frac1N\sum_i \log p_{i, y_i}`, in nats. A probability below the smallest normal
      number of its precision counts as that (87.3 nats in float32), so that the mean stays finite; from
      outputs, :meth:`pyronorm.likelihoods.Prediction.nll` has no such end.
    * ``ece``: expected calibration error of the most probable class, 15 bins of equal width,
      :math:`\sum_b \frac{|b|}{N} |\mathrm{acc}(b) - \mathrm{conf}(b)|` (Naeini et al. 2015).
    * ``brier``: :math:`\frac1N\sum_i\sum_k (p_{ik} - [y_i = k])^2`, between 0 and 2 (Brier 1950).
    * ``aurc``: area under the risk-coverage curve, the mean over ``k`` of the share of errors among the
      ``k`` most confident examples (Geifman, Uziel & El-Yaniv, ICLR 2019).

    Args:
        probabilities: predictive probabilities; every position of a dense output counts.
        y: classes, on any device.
        weight: how often each example counts, of the shape of ``y``; None for once.

    Returns:
        The metrics by name.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if they are no probabilities, or no classes.
    """
    p, y = check_classes(probabilities, y, "classification_metrics")
    classes = p.shape[-1]
    # A probability of 1 belongs to the last bin.
    eps = torch.finfo(p.dtype).eps
    tiny = torch.finfo(p.dtype).tiny
    confidence, chosen = p.max(1)
    share = _shares(p, weight)
    right = (chosen == y).double()
    truth = torch.nn.functional.one_hot(y, classes)
    edges = torch.linspace(0, 1, _BINS + 1, dtype=p.dtype, device=p.device)
    bins = torch.bucketize(confidence.clamp(eps, 1 - eps), edges, right=True) - 1
    gaps = share.new_zeros(_BINS).index_add(0, bins, share * (right - confidence.double()))
    log_p = p.gather(1, y[:, None]).clamp(min=tiny).log()[:, 0].double()
    return {
        "accuracy": float((share * right).sum()),
        "nll": -float((share * log_p).sum()),
        "ece": float(gaps.abs().sum()),
        "brier": float((share * (p - truth).square().sum(1).double()).sum()),
        "aurc": _aurc(confidence, 1 - right, share),
    }


def _shares(p: Tensor, weight: Tensor | None) -> Tensor:
    """How much each example counts, adding up to 1."""
    if weight is None:
        return torch.full((len(p),), 1 / len(p), dtype=torch.float64, device=p.device)
    if weight.numel() != len(p) or not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ShapeError(
            "classification_metrics: weight must be finite and not negative, one per example, got "
            f"shape {tuple(weight.shape)} for {len(p)}."
        )
    share = weight.to(p.device).reshape(-1).double()
    return share / share.sum()


def _aurc(confidence: Tensor, error: Tensor, weight: Tensor) -> float:
    risk, share = risk_by_rank(-confidence, error, weight)
    return float((share * risk).sum())


def check_classes(probabilities: Tensor, y: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Flatten positions, and refuse what are no probabilities or classes, naming ``where``."""
    if probabilities.ndim < 1 or probabilities.shape[:-1] != y.shape:
        raise ShapeError(
            f"{where}: probabilities of shape {tuple(probabilities.shape)} need y of shape "
            f"{tuple(probabilities.shape[:-1])}, got {tuple(y.shape)}."
        )
    classes = probabilities.shape[-1]
    p, y = probabilities.reshape(-1, classes), y.to(probabilities.device).reshape(-1)
    if len(p) == 0 or classes < 2:
        raise DataError(f"{where}: needs examples and at least 2 classes, got {tuple(p.shape)}.")
    if y.is_floating_point() or not bool(((y >= 0) & (y < classes)).all()):
        raise DataError(
            f"{where}: y must be integers from 0 to {classes - 1}, got {y.dtype} from "
            f"{float(y.min()):g} to {float(y.max()):g}."
        )
    off = max(float((p.sum(1) - 1).abs().max()), -float(p.min()))
    if not off < _TOLERANCE:
        raise DataError(
            f"{where}: rows of probabilities must be between 0 and 1 and sum to 1; one is off by "
            f"{off:g}. Are they logits? Then take softmax first."
        )
    return p, y.long()
