"""What held-out data chose: a posterior and its temperature, beside all the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pyronorm.display import axes_or_new, displayed, frame
from pyronorm.infer.posterior import Posterior
from pyronorm.model import NormalizationModel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["PLAIN", "CalibratedPosterior", "Candidate"]

PLAIN = "plain"
"""The name of the network without noise."""


@dataclass(frozen=True)
class Candidate:
    """What held-out data say of a posterior.

    Attributes:
        name: as it was given; ``"plain"`` is the network without noise.
        batch_size: ``n`` of the law of batch noise, or of a bank's batches; None for others.
        nll: mean negative log predictive density per value, in nats, as it is.
        calibrated_nll: the same at its own temperature, cross-fitted.
        difference: ``calibrated_nll`` minus that of ``"plain"``: what it adds to a temperature.
        standard_error: of the difference, paired over examples.
        temperature: fitted to all of the data.
    """

    name: str
    batch_size: float | None
    nll: float
    calibrated_nll: float
    difference: float
    standard_error: float
    temperature: float


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class CalibratedPosterior:
    """The choice of :func:`calibrate`: use ``model`` with ``posterior``.

    Attributes:
        model: the network with the likelihood at the chosen temperature.
        posterior: the chosen posterior.
        name: its name among the candidates.
        candidates: all of them.
        expected_nll: what the whole procedure, choice included, gives on data that it has not seen:
            each fold by the candidate and temperature that the other folds would choose.
        num_examples: held-out examples that it was chosen by.
    """

    model: NormalizationModel
    posterior: Posterior
    name: str
    candidates: Sequence[Candidate]
    expected_nll: float
    num_examples: int

    @property
    def temperature(self) -> float:
        """The chosen temperature."""
        return next(c.temperature for c in self.candidates if c.name == self.name)

    def to_dataframe(self) -> pd.DataFrame:
        """The candidates as a table; those of a family with their ``batch_size`` are a curve over it.

        Raises:
            ImportError: if pandas is not installed.
        """
        rows = {
            f.name: [getattr(one, f.name) for one in self.candidates] for f in fields(Candidate)
        }
        table = frame(rows, "CalibratedPosterior")
        return table.assign(chosen=table["name"] == self.name)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Calibrated NLL over the batch size ``n``, a curve for each family of candidates.

        Bars are a standard error of the difference from the plain network, which is the line at its own
        calibrated NLL. A cross marks what was chosen. Candidates without an ``n`` are not drawn.

        Args:
            ax: where to draw; None for a new figure.

        Raises:
            OptionError: if ``ax`` is none.
        """
        ax = axes_or_new(ax)
        families: dict[str, list[tuple[float, Candidate]]] = {}
        for one in self.candidates:
            if one.batch_size is not None:
                families.setdefault(one.name.rstrip("0123456789. "), []).append(
                    (one.batch_size, one)
                )
            if one.name == PLAIN:
                ax.axhline(one.calibrated_nll, color="0.6", linestyle="--", label=PLAIN)
        for family, members in families.items():
            sizes = [n for n, _ in members]
            nll = [one.calibrated_nll for _, one in members]
            bars = [one.standard_error for _, one in members]
            ax.errorbar(
                sizes, nll, yerr=bars, marker="o", fillstyle="none", capsize=3, label=family
            )
            chosen = [(n, one.calibrated_nll) for n, one in members if one.name == self.name]
            for place in chosen:
                ax.plot(*place, "x", color="black", markersize=10)
        ax.set_xscale("log", base=2)
        ax.set(xlabel="batch size n of the noise", ylabel="calibrated NLL, nats per value")
        ax.legend()
        return ax

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        best = sorted(self.candidates, key=lambda c: c.calibrated_nll)
        named = {f.name: [getattr(one, f.name) for one in best] for f in fields(Candidate)}
        return {**named, "chosen": [one.name == self.name for one in best]}

    def __repr__(self) -> str:
        """What was chosen, and how good it is."""
        return (
            f"CalibratedPosterior({self.name!r} of {len(self.candidates)} candidates at temperature "
            f"{self.temperature:.4g}, expected NLL {self.expected_nll:.4g} by {self.num_examples:,} "
            "examples)"
        )

    def __str__(self) -> str:
        """The candidates, best first, and what was chosen."""
        width = max(len(candidate.name) for candidate in self.candidates)
        lines = [f"{'':{width}}     NLL  calibrated  against plain      T"]
        for c in sorted(self.candidates, key=lambda c: c.calibrated_nll):
            gain = "" if c.name == PLAIN else f"{c.difference:+.4f} ± {c.standard_error:.4f}"
            chosen = "  <- chosen" if c.name == self.name else ""
            lines.append(
                f"{c.name:{width}}  {c.nll:6.4f}  {c.calibrated_nll:10.4f}  {gain:>16}  "
                f"{c.temperature:5.2f}{chosen}"
            )
        lines.append(
            f"{self.num_examples:,} held-out examples; the procedure as a whole: {self.expected_nll:.4f}"
        )
        return "\n".join(lines)
