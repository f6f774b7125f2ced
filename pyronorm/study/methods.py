"""The rows of a comparison: a normalizer and a posterior each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pyronorm import guides
from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import Analytic, Group, GroupWhitening, Normalizer, Weight

__all__ = ["DEFAULT_METHODS", "METHODS", "Method", "choose_methods"]

_MakeGuide = Callable[[NormalizationModel, float], guides.Guide]
_FromBank = Callable[[NormalizationModel, guides.StatisticsBank], guides.Guide]


@dataclass(frozen=True)
class Method:
    """One row: how to normalize, what to train, and what to predict with.

    Attributes:
        name: ``normalizer/posterior``.
        normalizer: None for batch statistics as the network has them. Analytic gets the moments of
            the training data.
        guide: makes the guide to train with, from the model and the ``n`` of the noise.
        from_bank: makes the posterior from a statistics bank after training; None predicts with the
            trained guide.
        description: in words, for the report.
    """

    name: str
    normalizer: Normalizer | None
    guide: _MakeGuide
    from_bank: _FromBank | None
    description: str

    @property
    def training(self) -> str:
        """A key that methods with the same training share."""
        return self.name if self.from_bank is None else f"{self.name.split('/')[0]}/point"


def _point(model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.Point(model)


def _mean_field(model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.MeanField.from_batch_size(model, noise)


def _low_rank(model: NormalizationModel, noise: float) -> guides.Guide:
    return guides.LowRank.from_batch_size(model, noise)


_EXPLICIT: dict[str, tuple[_MakeGuide, str]] = {
    "point": (_point, "without noise"),
    "fixed": (guides.BatchNoise, "with fixed noise"),
    "mean-field": (_mean_field, "with learned independent noise"),
    "low-rank": (_low_rank, "with a learned joint Gaussian"),
}

_FROM_BANK: dict[str, tuple[_FromBank, str]] = {
    "mcbn": (guides.MonteCarloBatchNorm, "Monte-Carlo batch normalization"),
    "stochastic": (guides.StochasticBatchNorm, "stochastic batch normalization"),
    "bank-low-rank": (
        guides.LowRank.from_bank,
        "batch normalization with a joint Gaussian of its statistics",
    ),
}


def _methods() -> dict[str, Method]:
    rows = [Method("batch/point", None, _point, None, "plain batch normalization")]
    rows += [
        Method(f"batch/{key}", None, _point, from_bank, text)
        for key, (from_bank, text) in _FROM_BANK.items()
    ]
    for name, normalizer, keys in (
        ("weight", Weight(), ("point", "fixed", "mean-field", "low-rank")),
        ("group", Group(8), ("point", "fixed", "mean-field", "low-rank")),
        ("analytic", Analytic(), ("point", "fixed", "mean-field", "low-rank")),
        ("group-whitening", GroupWhitening(8), ("point", "mean-field")),
    ):
        for key in keys:
            make, text = _EXPLICIT[key]
            kind = "group whitening" if "whitening" in name else f"{name} normalization"
            rows.append(Method(f"{name}/{key}", normalizer, make, None, f"{kind} {text}"))
    return {row.name: row for row in rows}


METHODS: Mapping[str, Method] = _methods()
"""The rows that ``pyronorm compare`` knows, by name."""

DEFAULT_METHODS = ("batch", "weight", "group")
"""The normalizers of a comparison that takes a few minutes."""


@checked
def choose_methods(names: str | Iterable[str] | None = None) -> list[Method]:
    """Look methods up by name.

    Args:
        names: names of :data:`METHODS`, of a normalizer (``"weight"``) for all of its methods, or
            ``"all"``; a list, or a string with commas. None for batch, weight and group.

    Raises:
        OptionError: for an unknown name; the message lists the choices.
    """
    names = DEFAULT_METHODS if names is None else names
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    chosen: dict[str, Method] = {}
    for name in names:
        found = [m for m in METHODS.values() if name in (m.name, m.name.split("/")[0], "all")]
        if not found:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"no method {name!r}.{hint} Choose from {', '.join(METHODS)}.")
        chosen.update({m.name: m for m in found})
    return list(chosen.values())
