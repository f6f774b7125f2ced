"""The report on choices in training with noise: an answer for each question, from paired contrasts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyronorm.study.columns import columns
from pyronorm.study.noise_networks import BATCH, SWAG_RATES
from pyronorm.study.noise_questions import CHOSEN, Contrast, Question, label, make_question
from pyronorm.study.study import Plot, Results, Section
from pyronorm.study.table import (
    LEVEL,
    Better,
    Column,
    Row,
    Table,
    find_rejected,
    paired_p_value,
)
from pyronorm.study.training_noise_report import TEMPERED, paired_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyronorm.study.noise_choices import NoiseChoicesSettings

__all__ = ["choose_rates", "contrast_gain", "sections"]

_NLL = "calibrated_nll"
_LEAST, _TESTED = 3, 5  # seeds for intervals, and for verdicts
_RATE = Column(
    "rate",
    "rate",
    4,
    Better.NEITHER,
    "Learning rate with the lowest calibrated NLL on the validation images of the seed.",
)


def choose_rates(rows: Sequence[Row], base: float) -> list[Row]:
    """Of methods with several learning rates, the one with the lowest calibrated validation NLL.

    Args:
        rows: with a condition ``lr`` where it is not that of all.
        base: that of all.

    Returns:
        For each such method and seed a row without conditions, with the rate in the value ``rate``.
    """
    tried: dict[tuple[str, int], dict[float, Row]] = {}
    for row in rows:
        rate = float(row.condition.get("lr", base))
        tried.setdefault((row.method, row.seed), {})[rate] = row
    found = []
    for (method, seed), by_rate in tried.items():
        if len(by_rate) > 1:
            rate = min(by_rate, key=lambda lr: by_rate[lr].values["validation_nll"])
            found.append(Row(f"{method}{CHOSEN}", seed, {**by_rate[rate].values, "rate": rate}))
    return found


def sections(settings: NoiseChoicesSettings, results: Results) -> Sequence[Section]:
    """All methods; then a section with an answer for each question."""
    base = [row for row in results.rows if not row.condition]
    rows = [*base, *choose_rates(results.rows, settings.training.lr)]
    shown = (*columns("accuracy", "nll"), *TEMPERED, *columns("ece", "realized_noise"), _RATE)
    training = settings.training
    size = "all other" if settings.num_train is None else f"{settings.num_train:,}"
    text = (
        f"Noise in training has n = {settings.noise:g} everywhere, dropout {settings.dropout:g}. Data "
        f"`{settings.data}`, {size} training images, network `{settings.network}`, "
        f"{training.epochs} epochs with batch size {training.batch_size}, AdamW from {training.lr} "
        f"annealed to 0, weight decay {training.weight_decay}. {settings.num_validation:,} validation "
        f"images choose temperatures and rates. {settings.num_samples} draws per prediction, with batch "
        "normalization each with batch statistics of its own. All networks of a seed have the same "
        "images, initial weights and order of batches."
    )
    made = [
        Section("Results", text, [Table("All methods", rows, shown, baseline=BATCH)]),
    ]
    for name in settings.questions:
        question = make_question(name, settings)
        names = {label(way) for way in question.ways}
        names |= {f"{name}{CHOSEN}" for name in names}
        readings = [row for row in rows if _without_reading(row.method) in names]
        gains = {c: contrast_gain(rows, c.terms) for c in question.contrasts}
        gains = {c: gain for c, gain in gains.items() if len(gain)}
        table = Table(name.capitalize(), readings, shown, baseline=BATCH)
        plot = Plot(
            name.replace(" ", "-"),
            "Differences of calibrated NLL, below 0 where the first is better: seeds, mean, 95 % "
            f"interval. Dotted: differences of {settings.margin:g}.",
            partial(_draw, gains, settings.margin),
            (9.0, 1.5 + 0.4 * len(gains)),
        )
        made.append(
            Section(
                f"Question: {name}",
                _details(settings, name),
                [table] if readings else [],
                [plot] if gains else [],
                _answer(question, gains, settings.margin),
            )
        )
    return made


def contrast_gain(rows: Sequence[Row], terms: Mapping[str, int]) -> pd.Series:
    """The weighted sum of calibrated NLL, for the seeds that have all of its methods."""
    total = pd.Series(0.0, sorted({row.seed for row in rows}))
    for method, weight in terms.items():
        values = {row.seed: row.values[_NLL] for row in rows if row.method == method}
        total = total + weight * pd.Series(values, dtype=float)
    return total.dropna()


def _without_reading(method: str) -> str:
    return method.removesuffix(", no averaging").removesuffix(", neutral statistics")


def _details(settings: NoiseChoicesSettings, name: str) -> str:
    details = {
        "relative": (
            "Latents act on what the normalizer makes of the data, standardized over 512 training "
            "images every 50 steps and after each epoch. *Realized n* shows what noise of "
            f"n = {settings.noise:g} comes to. Batch normalization standardizes by itself."
        ),
        "warm-up": f"From n = {64 * settings.noise:g}, evenly in log n.",
        "regularizers": (
            f"Weight decay {settings.decay:g}; augmentation: random shifts by up to an eighth of the "
            "image, and mirror images but of digits."
        ),
        "learning rate": (
            f"{settings.training.lr:g} and {', '.join(f'{r:g}' for r in settings.learning_rates)}, a "
            "training each."
        ),
        "swag": (
            "The plain network goes on for a third of its epochs with SGD of momentum 0.9 at a constant "
            f"rate, {', '.join(f'{r:g}' for r in SWAG_RATES)}, whichever is best on validation images; "
            "networks are drawn with the moments of that path, each with batch statistics of its own."
        ),
    }
    return details.get(name, "")


def _answer(question: Question, gains: Mapping[Contrast, pd.Series], margin: float) -> str:
    """Verdicts in a sentence, then every contrast with its interval."""
    if not gains or min(map(len, gains.values())) < _LEAST:
        return f"{question.text} Fewer than {_LEAST} seeds: no intervals."
    verdict = ""
    if min(map(len, gains.values())) >= _TESTED:
        verdict = f" **{_verdict(gains, margin)}**"
    lines = [_line(contrast, gain, margin) for contrast, gain in gains.items()]
    return (
        f"{question.text}{verdict} Differences of calibrated NLL, below 0 where the first is better: "
        "means and 95 % intervals, paired by seed, each on its own:\n\n" + "\n".join(lines)
    )


def _verdict(gains: Mapping[Contrast, pd.Series], margin: float) -> str:
    zero = {contrast: 0 * gain for contrast, gain in gains.items()}
    p = np.array([paired_p_value(gain, zero[contrast], 0.0) for contrast, gain in gains.items()])
    shown = find_rejected(p)
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "same": [], "open": []}
    for (contrast, gain), rejected in zip(gains.items(), shown, strict=True):
        if rejected:
            key = "lower" if gain.mean() < 0 else "higher"
        else:
            key = "same" if _is_within(gain, margin) else "open"
        groups[key].append(contrast.words)
    words = {
        "lower": "Better",
        "higher": "Worse",
        "same": f"The same within {margin:g}",
        "open": "Not decided",
    }
    parts = [f"{words[key]}: {'; '.join(names)}." for key, names in groups.items() if names]
    return f"{' '.join(parts)} (t-tests at 5 % for these differences together, Holm.)"


def _line(contrast: Contrast, gain: pd.Series, margin: float) -> str:
    mean, low, high = paired_interval(gain, 0 * gain)
    same = f", within {margin:g} (two one-sided tests at 5 %)" if _is_within(gain, margin) else ""
    return f"- {contrast.words}: {mean:+.3f} ({low:+.3f} to {high:+.3f}){same}"


def _is_within(gain: pd.Series, margin: float) -> bool:
    """Whether two one-sided tests both say that the difference is smaller than the margin."""
    from scipy.stats import t as student

    reach = float(student.isf(LEVEL, len(gain) - 1)) * float(gain.sem())
    return math.isfinite(reach) and abs(float(gain.mean())) + reach < margin


def _draw(gains: Mapping[Contrast, pd.Series], margin: float, figure: Figure) -> None:
    axes = figure.subplots()
    for position, gain in enumerate(gains.values()):
        axes.plot(gain, [position] * len(gain), "o", color="C0", alpha=0.35, markersize=4)
        if len(gain) >= _LEAST:
            mean, low, high = paired_interval(gain, 0 * gain)
            axes.errorbar(mean, position, xerr=[[mean - low], [high - mean]], fmt="D", color="C0",
                          capsize=4)  # fmt: skip
    axes.axvline(0.0, color="0.5", lw=1)
    for side in (-margin, margin):
        axes.axvline(side, color="0.5", linestyle=":", lw=1)
    axes.set_yticks(range(len(gains)), [contrast.words.replace("`", "") for contrast in gains])
    axes.invert_yaxis()
    axes.set_xlabel("difference of calibrated NLL (nats)")
    axes.grid(axis="x", alpha=0.3)
