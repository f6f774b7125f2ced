"""Methods of a study in units of independently trained plain networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyronorm.diagnostics import EnsembleEquivalent, ensemble_curve, ensemble_equivalent
from pyronorm.likelihoods import Prediction
from pyronorm.study.columns import columns
from pyronorm.study.table import Row, Table

__all__ = ["CURVE", "curve_rows", "curve_table", "equivalents", "equivalents_text"]

CURVE = "plain networks"
_SIZE, _NLL = "networks", "calibrated_nll"


def curve_rows(members: Sequence[Prediction], y: Tensor, seed: int) -> list[Row]:
    """The calibrated NLL of ensembles of 1, 2, ... of a seed's plain networks, a row for each size.

    Args:
        members: predictions of the networks for the test images.
        y: their classes.
        seed: of the job.
    """
    curve = ensemble_curve(members, y)
    return [
        Row(CURVE, seed, {_NLL: float(nll)}, {_SIZE: size}) for size, nll in enumerate(curve.nll, 1)
    ]


def curve_table(rows: Sequence[Row]) -> Table:
    """The ensembles among a study's rows, by size."""
    chosen = [row for row in rows if row.method == CURVE]
    return Table("Ensembles of plain networks", chosen, columns(_NLL), by=(_SIZE,))


def equivalents(rows: Sequence[Row]) -> dict[str, EnsembleEquivalent]:
    """The deep ensemble equivalent of every method that has no condition, over the common seeds."""
    curves: dict[int, dict[int, float]] = {}
    methods: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.method == CURVE:
            of_seed = curves.setdefault(row.seed, {})
            of_seed[int(row.condition[_SIZE])] = row.values[_NLL]
        elif not row.condition and math.isfinite(row.values.get(_NLL, math.nan)):
            methods.setdefault(row.method, {})[row.seed] = row.values[_NLL]
    found = {}
    for method, values in methods.items():
        seeds = sorted(curves.keys() & values.keys())
        if seeds:
            curve = [[curves[seed][size] for size in sorted(curves[seed])] for seed in seeds]
            nll = torch.tensor([values[seed] for seed in seeds], dtype=torch.float64)
            found[method] = ensemble_equivalent(torch.tensor(curve, dtype=torch.float64), nll)
    return found


def equivalents_text(rows: Sequence[Row]) -> str:
    """A paragraph and a list with each method's equivalent; empty without ensembles."""
    found = equivalents(rows)
    if not found:
        return ""
    largest = max(equivalent.largest for equivalent in found.values())
    lines = [f"- `{method}`: {equivalent}" for method, equivalent in found.items()]
    return (
        "*Deep ensemble equivalent*: how many independently trained plain networks, averaged, have the "
        f"calibrated NLL of a method. From ensembles of up to {largest} networks of the same seed; in "
        "brackets all numbers that a t-test paired by seed does not tell from the method at 5 % (from "
        "three seeds on; for each method alone).\n\n" + "\n".join(lines)
    )
