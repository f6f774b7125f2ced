"""How good uncertainty is: calibration, ranking of errors, outliers, predictive distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.display import axes_or_new, displayed, frame
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.stats.classification import check_classes
from pyronorm.stats.crps import check_regression, crps_normal_mixture
from pyronorm.stats.risk import risk_by_rank

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "RiskCurve",
    "adaptive_ece",
    "out_of_distribution",
    "probabilistic_regression_metrics",
    "selective_risk",
]


@checked
def adaptive_ece(
    probabilities: Float[Tensor, "*batch classes"], y: Int[Tensor, "*batch"], *, bins: Count = 15
) -> float:
    r"""Calibration error of the most probable class, in bins of equal numbers of examples.

    :math:`\sum_b \frac{|b|}{N} |\mathrm{acc}(b) - \mathrm{conf}(b)|` with the examples in the order of
    their confidence, cut into ``bins`` parts whose sizes differ by at most 1.

    Args:
        probabilities: predictive probabilities.
        y: classes.
        bins: number of bins, at most that of the examples.

    Raises:
        OptionError: if ``bins`` is below 1 or above the number of examples.
        ShapeError: if the shapes do not fit.
        DataError: if they are no probabilities, or no classes.

    Source: Nguyen & O'Connor, "Posterior calibration and exploratory analysis for natural language
    processing models" (EMNLP 2015), for bins of equal numbers.
    """
    p, y = check_classes(probabilities, y, "adaptive_ece")
    if not 1 <= bins <= len(p):
        raise OptionError(f"adaptive_ece: bins must be from 1 to {len(p)} (examples), got {bins}.")
    confidence, best = p.double().max(1)
    order = confidence.argsort(stable=True)
    gap = (confidence - (best == y).double())[order]
    return sum(abs(float(part.sum())) for part in gap.tensor_split(bins)) / len(p)


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class RiskCurve:
    r"""Risk of the examples that are kept, against the share that is rejected.

    Attributes:
        rejected: shares :math:`1 - k/N`, :math:`k = N, \dots, 1`, rising from 0.
        risk: mean loss of the ``k`` examples with the least uncertainty.
        aurc: area under the curve, :math:`\frac1N\sum_k \text{risk}_k`.
        best_aurc: the area if uncertainty ordered the examples as their losses do.
    """

    rejected: Float[Tensor, " example"]
    risk: Float[Tensor, " example"]
    aurc: float
    best_aurc: float

    @property
    def excess_aurc(self) -> float:
        """``aurc - best_aurc``: what the order costs, whatever the accuracy."""
        return self.aurc - self.best_aurc

    def to_dataframe(self) -> pd.DataFrame:
        """A row per share of rejected examples: ``rejected`` and ``risk``.

        Raises:
            ImportError: if pandas is not installed.
        """
        columns = {"rejected": self.rejected.tolist(), "risk": self.risk.tolist()}
        return frame(columns, "RiskCurve")

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Risk against the share that is rejected.

        Args:
            ax: where to draw; None for a new figure.

        Raises:
            OptionError: if ``ax`` is none.
        """
        ax = axes_or_new(ax)
        ax.plot(self.rejected.cpu(), self.risk.cpu())
        ax.set(xlabel="share rejected", ylabel="risk of the rest")
        return ax


@checked
def selective_risk(
    uncertainty: Float[Tensor, " example"], loss: Float[Tensor, " example"]
) -> RiskCurve:
    """Reject the most uncertain examples first: what is the risk of the rest?

    Examples of equal uncertainty come in random order; the curve is the expectation over it.

    Args:
        uncertainty: of each prediction, such as the entropy of :func:`pyronorm.predict`.
        loss: of each prediction, such as 1 for a wrong class and 0 for a right one.

    Raises:
        ShapeError: if the shapes differ.
        DataError: if there are no examples, or values that are not finite.

    Source: Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural
    Classifiers" (ICLR 2019), for AURC and its excess; they reject by confidence and count errors.
    """
    if uncertainty.shape != loss.shape or uncertainty.ndim != 1:
        raise ShapeError(
            "selective_risk: uncertainty and loss must have one shape (example,), got "
            f"{tuple(uncertainty.shape)} and {tuple(loss.shape)}."
        )
    _refuse_empty_or_non_finite("selective_risk", uncertainty, loss)
    loss = loss.double().to(uncertainty.device)
    risk, _ = risk_by_rank(uncertainty, loss)
    number = torch.arange(1, len(loss) + 1, device=loss.device, dtype=loss.dtype)
    best = loss.sort().values.cumsum(0) / number
    rejected = 1 - number / len(loss)
    return RiskCurve(rejected.flip(0), risk.flip(0), float(risk.mean()), float(best.mean()))


@checked
def out_of_distribution(
    inside: Float[Tensor, " example"], outside: Float[Tensor, " outlier"]
) -> dict[str, float]:
    """How well a score tells outliers from examples like those in training.

    * ``auroc``: probability that an outlier has a higher score than an example, ties counted half.
    * ``fpr95``: share of outliers that are taken for examples, at the lowest threshold that keeps at
      least 95 % of the examples.

    Args:
        inside: scores of examples, higher meaning stranger: the entropy of :func:`pyronorm.predict`, or
            its mutual information, which is identically 0 for a point.
        outside: scores of outliers.

    Raises:
        DataError: if there are none, or values that are not finite.

    Source: Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples" (ICLR 2017); FPR95 as in Liang, Li & Srikant (ICLR 2018).
    """
    _refuse_empty_or_non_finite("out_of_distribution", inside)
    _refuse_empty_or_non_finite("out_of_distribution", outside)
    outside = outside.to(inside.device)
    ordered = inside.double().sort().values
    below = torch.searchsorted(ordered, outside.double())
    not_above = torch.searchsorted(ordered, outside.double(), right=True)
    auroc = float((below + not_above).double().mean()) / (2 * len(inside))  # a tie is a half
    keep = math.ceil(0.95 * len(inside) - 1e-9)
    threshold = inside.double().sort().values[keep - 1]
    return {"auroc": auroc, "fpr95": float((outside.double() <= threshold).double().mean())}


@checked
def probabilistic_regression_metrics(
    mean: Float[Tensor, "sample example *out"],
    std: Float[Tensor, "..."],
    y: Float[Tensor, "example *out"],
    *,
    levels: Sequence[float] = (0.5, 0.9, 0.95),
) -> dict[str, float]:
    r"""How good the predictions of a normal likelihood are, as distributions.

    * ``pll``: predictive log likelihood, mean over examples of
      :math:`\log\frac1S\sum_s \prod_k \mathcal N(y_k; m_{sk}, \sigma_{sk}^2)`, in nats.
    * ``crps``: mean over all values of :func:`crps_normal_mixture`.
    * ``rmse``: root mean squared error of the predictive mean.
    * ``coverage_90`` and so on: share of values within the central interval of that level.

    Args:
        mean: network outputs, one per draw: ``predict(...).samples``.
        std: standard deviations of the noise, positive, that broadcast to the shape of ``mean``.
        y: targets.
        levels: levels of the central intervals.

    Raises:
        ShapeError: if the shapes do not fit.
        OptionError: if a level is not between 0 and 1.
        DataError: if there are no examples, or values that are not finite.
    """
    std, y = check_regression("probabilistic_regression_metrics", mean, std, y)
    _refuse_empty_or_non_finite("probabilistic_regression_metrics", mean, y)
    for level in levels:
        if not 0 < level < 1:
            raise OptionError(
                f"probabilistic_regression_metrics: levels must be between 0 and 1, got {level}."
            )
    z = (y - mean) / std
    density = -z.square() / 2 - std.log() - math.log(2 * math.pi) / 2
    density = density.reshape(*z.shape[:2], -1).sum(2)  # one target per example, or several
    # Where the targets are in their predictive distributions: uniform if these are right.
    position = torch.special.ndtr(z).mean(0)
    found = {
        "pll": float((density.logsumexp(0) - math.log(len(mean))).mean()),
        "crps": float(crps_normal_mixture(mean, std, y).mean()),
        "rmse": float((mean.mean(0) - y).square().mean().sqrt()),
    }
    for level in levels:
        inside = (position - 0.5).abs() <= level / 2
        found[f"coverage_{100 * level:g}"] = float(inside.double().mean())
    return found


def _refuse_empty_or_non_finite(where: str, *values: Tensor) -> None:
    for value in values:
        if value.numel() == 0:
            raise DataError(f"{where}: there are no examples.")
        if not bool(value.isfinite().all()):
            raise DataError(f"{where}: there are values that are not finite.")
