"""How many independently trained networks a method is worth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pyronorm.checks import Count, Probability, checked
from pyronorm.diagnostics.temperature import cross_fit
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.likelihoods import Prediction
from pyronorm.randomness import Seed, seed_value

__all__ = ["EnsembleCurve", "EnsembleEquivalent", "ensemble_curve", "ensemble_equivalent"]

_ROUNDING = 1e-6  # nats: of differences between numbers of float32


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class EnsembleCurve:
    """Calibrated NLL of deep ensembles of 1, 2, ... networks.

    Attributes:
        nll: mean over the ensembles of each size, in nats per example.
        std: their (unbiased) standard deviation; NaN where there is one ensemble. Ensembles of a size
            share members, so that the spread shrinks to nothing at the largest size.
        number: how many ensembles of each size were judged.
    """

    nll: Float[Tensor, " size"]
    std: Float[Tensor, " size"]
    number: tuple[int, ...]


@displayed
@dataclass(frozen=True, repr=False)
class EnsembleEquivalent:
    """A method in units of networks.

    Attributes:
        members: networks in the ensemble with the method's calibrated NLL, between sizes too;
            below 1 it is 0, beyond the curve's end infinite.
        low: lower end of the interval; 0 where it reaches below one network.
        high: its upper end; infinite where it reaches beyond the curve. NaN, as ``low`` is, with
            fewer than three repetitions.
        largest: members of the curve's largest ensemble.
    """

    members: float
    low: float
    high: float
    largest: int

    def __str__(self) -> str:
        """``2.3 (1.8 to 3.1)``, with ``< 1`` and ``> M`` beyond the ends of the curve."""
        members = self._text(self.members)
        if math.isnan(self.low):
            return members
        return f"{members} ({self._text(self.low)} to {self._text(self.high)})"

    def _text(self, members: float) -> str:
        if members == 0:
            return "< 1"
        return f"> {self.largest}" if math.isinf(members) else f"{members:.1f}"


@torch.no_grad()
@checked
def ensemble_curve(
    predictions: Sequence[Prediction],
    y: Tensor,
    *,
    subsets: Count = 10,
    folds: Count = 10,
    seed: Seed = 0,
) -> EnsembleCurve:
    r"""The calibrated NLL of deep ensembles over their number of networks.

    For each size ``m`` up to the number of networks, ensembles are subsets of ``m`` of them, drawn
    without repetition (all of them where there are no more than ``subsets``). Each is judged at its own
    temperature, cross-fitted: every fold of the data at the temperature that is best for the rest.

    Args:
        predictions: of independently trained networks for the same data, with their outputs, each of
            the same number of draws (one for a plain network).
        y: targets of the data, ``(batch, *event)``, without missing ones.
        subsets: ensembles of each size.
        folds: parts of the data, each at a temperature of its own; drawn at random, the same for all.
        seed: for ensembles and folds.

    Raises:
        OptionError: if there is no network, a prediction has no outputs, or there are fewer examples
            than folds.
        ShapeError: if the outputs differ in shape.
        DataError: if targets are impossible.

    Source: Ashukha, Lyzhov, Molchanov & Vetrov, "Pitfalls of In-Domain Uncertainty Estimation and
    Ensembling in Deep Learning" (ICLR 2020), sections 3 and 4.

    Departs from the paper: temperatures are cross-fitted on tenths of the data instead of
    on halves.
    """
    if not predictions:
        raise OptionError("ensemble_curve: there is no prediction; give one per trained network.")
    outputs = [p.outputs for p in predictions if p.outputs is not None]
    if len(outputs) < len(predictions):
        raise OptionError(
            "ensemble_curve: a prediction has no outputs; predict with keep_samples=True."
        )
    if len({output.shape for output in outputs}) > 1:
        raise ShapeError(
            "ensemble_curve: networks must have outputs of one shape (draw, example, ...), got "
            f"{', '.join(str(tuple(o.shape)) for o in outputs)}."
        )
    if not 2 <= folds <= len(predictions[0]):
        raise OptionError(
            f"ensemble_curve: folds must be from 2 to the number of examples, {len(predictions[0])}, "
            f"got {folds}."
        )
    likelihood = predictions[0].likelihood
    y = y.to(outputs[0].device)
    likelihood.check_data(y, outputs[0], 1)
    if not bool(likelihood.present(y).all()):
        raise DataError("ensemble_curve: there are examples without values; leave them out.")
    generator = torch.Generator().manual_seed(seed_value(seed))
    fold = (torch.randperm(len(y), generator=generator) % folds).to(y.device)

    def nll(members: Sequence[int]) -> float:
        joined = likelihood.predict(torch.cat([outputs[k] for k in members]))
        return -float(cross_fit(joined, y, fold, undetermined=1.0).cross_fitted.mean())

    found = [
        torch.tensor([nll(members) for members in chosen], dtype=torch.float64)
        for chosen in _ensembles(len(outputs), subsets, generator)
    ]
    return EnsembleCurve(
        torch.stack([values.mean() for values in found]),
        torch.stack([v.std() if len(v) > 1 else v.new_tensor(math.nan) for v in found]),
        tuple(map(len, found)),
    )


def _ensembles(
    networks: int, subsets: int, generator: torch.Generator
) -> list[list[tuple[int, ...]]]:
    """Subsets of each size, all different."""
    found: list[list[tuple[int, ...]]] = []
    for size in range(1, networks + 1):
        if math.comb(networks, size) <= subsets:
            found.append(list(itertools.combinations(range(networks), size)))
            continue
        chosen: dict[tuple[int, ...], None] = {}
        while len(chosen) < subsets:
            drawn = torch.randperm(networks, generator=generator)[:size]
            chosen[tuple(sorted(drawn.tolist()))] = None
        found.append(list(chosen))
    return found


@checked
def ensemble_equivalent(
    curves: Float[Tensor, "run size"], nll: Float[Tensor, " value"], *, level: Probability = 0.95
) -> EnsembleEquivalent:
    r"""The size of a deep ensemble that has a method's calibrated NLL.

    The curve of NLL over the number of networks ``m`` is made monotone, :math:`\min_{k \le m}`, and
    interpolated linearly in ``1/m`` between sizes, which is exact where :math:`a + b/m` holds; there
    the method's mean NLL is looked up. With at least three runs (seeds) there is an interval as well:
    all ``m`` at which a two-sided t-test, paired by run, does not tell the method from the ensembles.

    Args:
        curves: NLL of ensembles of 1, 2, ... networks in each run, such as :func:`ensemble_curve`'s.
        nll: NLL of the method in the same runs, on the same data, calibrated in the same way.
        level: of the interval.

    Raises:
        ShapeError: if there is not one curve per value, or no curve of one network at least.
        DataError: if values are not finite.

    Source: Ashukha et al. (ICLR 2020), section 4: the deep ensemble equivalent score.

    Departs from the paper: linear in ``1/m`` instead of in ``m``, and the interval is over runs instead
    of the spread of the curve alone.
    """
    from scipy.stats import t as student

    if curves.ndim != 2 or nll.shape != curves.shape[:1] or not curves.numel():
        raise ShapeError(
            "ensemble_equivalent: expected curves (run, size) and one nll per run, got "
            f"{tuple(curves.shape)} and {tuple(nll.shape)}."
        )
    if not bool(curves.isfinite().all() and nll.isfinite().all()):
        raise DataError("ensemble_equivalent: there are values that are not finite.")
    runs, largest = curves.shape
    # What the method has less than the ensembles; it falls with their size.
    gain = curves.double().cpu().numpy() - nll.double().cpu().numpy()[:, None]
    mean = gain.mean(0)
    members = _crossing(mean)
    if runs < 3:
        return EnsembleEquivalent(members, math.nan, math.nan, largest)
    reach = float(student.isf((1 - level) / 2, runs - 1)) * gain.std(0, ddof=1) / math.sqrt(runs)
    return EnsembleEquivalent(members, _crossing(mean - reach), _crossing(mean + reach), largest)


def _crossing(gain: NDArray[np.float64]) -> float:
    """Where a curve over 1, 2, ... networks falls to 0: 0 before the first, infinity after the last."""
    falling = np.minimum.accumulate(gain)
    if falling[0] < -_ROUNDING:
        return 0.0
    below = np.flatnonzero(falling <= _ROUNDING)
    if not len(below):
        return math.inf
    m = int(below[0])  # networks in the last ensemble that is not better
    if m == 0:
        return 1.0
    share = falling[m - 1] / (falling[m - 1] - falling[m])
    return float(1 / ((1 - share) / m + share / (m + 1)))
