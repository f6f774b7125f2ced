"""What can be asked about noise in training: ways to train, and contrasts between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from pyronorm.study.noise_networks import (
    BATCH,
    PER_EXAMPLE,
    RELATIVE,
    SCALE_ONLY,
    SHIFT_ONLY,
    SWAG,
    WARM_UP,
    Way,
)

if TYPE_CHECKING:
    from pyronorm.study.noise_choices import NoiseChoicesSettings

__all__ = ["CHOSEN", "QUESTIONS", "Contrast", "Question", "label", "make_question"]

CHOSEN = ", rate chosen"  # of a method with the learning rate that is best on validation images


@dataclass(frozen=True, eq=False)
class Contrast:
    """A weighted sum of what methods reach, below 0 where the first one is the better.

    Attributes:
        words: what is compared.
        terms: a weight for each method.
    """

    words: str
    terms: Mapping[str, int]


@dataclass(frozen=True)
class Question:
    """A question, the networks that it needs, and the contrasts that answer it.

    Attributes:
        text: the question.
        ways: how networks are trained.
        contrasts: what is compared.
    """

    text: str
    ways: Sequence[Way]
    contrasts: Sequence[Contrast]


def label(way: Way) -> str:
    """The name of a method in tables, whatever the learning rate."""
    return f"{way.method}, {way.beside}" if way.beside else way.method


def make_question(name: str, settings: NoiseChoicesSettings) -> Question:
    """One of :data:`QUESTIONS`, with a study's normalizers, strengths and rates."""
    return QUESTIONS[name](settings)


def _against(method: str, rival: str) -> Contrast:
    return Contrast(f"`{method}` against `{rival}`", {method: 1, rival: -1})


def _normalizers(settings: NoiseChoicesSettings) -> Question:
    plain = [Way(name) for name in settings.normalizers]
    noisy = [replace(way, noise=settings.noise) for way in plain]
    pairs = zip(noisy, plain, strict=True)
    contrasts = [_against(label(way), label(without)) for way, without in pairs]
    contrasts += [_against(label(way), label(noisy[0])) for way in noisy[1:]]
    text = "With which normalizers is noise in training worth something, and with which most?"
    return Question(text, [*plain, *noisy, _dropout(settings)], contrasts)


def _relative(settings: NoiseChoicesSettings) -> Question:
    text = (
        "Is noise relative to what a normalizer makes of the data better than noise of the same n in "
        "the normalizer's own units?"
    )
    # Batch normalization standardizes: relative noise is the same there.
    return _kinds(settings, text, (RELATIVE,), _others(settings), [_noisy(BATCH, settings)])


def _per_example(settings: NoiseChoicesSettings) -> Question:
    text = (
        "Is one draw for each example better than one for each batch? (Not for batch statistics.)"
    )
    return _kinds(settings, text, (PER_EXAMPLE,), _others(settings), [_dropout(settings)])


def _parts(settings: NoiseChoicesSettings) -> Question:
    text = "Is noise of the shift alone, or of the scale alone, as good as both?"
    return _kinds(settings, text, (SHIFT_ONLY, SCALE_ONLY), _first(settings), [])


def _warm_up(settings: NoiseChoicesSettings) -> Question:
    text = f"Is it better to let the noise grow within the first {settings.warm_up:g} epochs?"
    return _kinds(settings, text, (WARM_UP,), _first(settings), [])


def _kinds(
    settings: NoiseChoicesSettings,
    text: str,
    kinds: Sequence[str],
    normalizers: Sequence[str],
    rivals: Sequence[Way],
) -> Question:
    """Noise of some kinds, against noise as it usually is, and against rivals."""
    ways: list[Way] = list(rivals)
    contrasts = []
    for name in normalizers:
        usual = _noisy(name, settings)
        made = [replace(usual, kind=kind) for kind in kinds]
        ways += [Way(name), usual, *made]
        for way in made:
            others = [usual, *rivals] if rivals else [usual, Way(name)]
            contrasts += [_against(label(way), label(other)) for other in others]
    return Question(text, ways, contrasts)


def _regularizers(settings: NoiseChoicesSettings) -> Question:
    plain, noise, dropout = Way(), _noisy(BATCH, settings), _dropout(settings)
    ways, contrasts = [plain, noise, dropout], []
    for beside in settings.regularizers:
        beside_it = [replace(way, beside=beside) for way in (plain, noise, dropout)]
        ways += beside_it
        own, noisy, dropped = map(label, beside_it)
        contrasts += [
            _against(own, label(plain)),
            _against(noisy, own),
            _against(noisy, dropped),
            Contrast(
                f"what noise gains beside {beside} against what it gains without",
                {noisy: 1, own: -1, label(noise): -1, label(plain): 1},
            ),
        ]
    text = "Does noise still gain something beside weight decay and augmentation?"
    return Question(text, ways, contrasts)


def _learning_rate(settings: NoiseChoicesSettings) -> Question:
    ways = [Way(), *(_noisy(name, settings) for name in _first(settings)), _dropout(settings)]
    plain, *noisy, dropout = (f"{label(way)}{CHOSEN}" for way in ways)
    contrasts = [_against(method, rival) for method in noisy for rival in (plain, dropout)]
    contrasts += [_against(f"{label(way)}{CHOSEN}", label(way)) for way in ways]
    rates = [replace(way, lr=lr) for way in ways for lr in settings.learning_rates]
    text = (
        "Do the answers hold where every method has the learning rate that is best for it on the "
        "validation images of the seed?"
    )
    return Question(text, [*ways, *rates], contrasts)


def _swag(settings: NoiseChoicesSettings) -> Question:
    plain, noise, dropout = Way(), _noisy(BATCH, settings), _dropout(settings)
    swag = Way(kind=SWAG)
    contrasts = [_against(label(swag), label(plain))]
    contrasts += [_against(label(way), label(swag)) for way in (noise, dropout)]
    text = "Is noise in training better than a Gaussian over all weights (SWAG)?"
    return Question(text, [plain, noise, dropout, swag], contrasts)


def _noisy(normalizer: str, settings: NoiseChoicesSettings) -> Way:
    return Way(normalizer, settings.noise)


def _dropout(settings: NoiseChoicesSettings) -> Way:
    return Way(dropout=settings.dropout)


def _others(settings: NoiseChoicesSettings) -> list[str]:
    return [name for name in settings.normalizers if name != BATCH]


def _first(settings: NoiseChoicesSettings) -> list[str]:
    return [BATCH, *_others(settings)[:1]]


QUESTIONS: Mapping[str, Callable[[NoiseChoicesSettings], Question]] = MappingProxyType(
    {
        "normalizers": _normalizers,
        "relative": _relative,
        "per example": _per_example,
        "parts": _parts,
        "warm-up": _warm_up,
        "regularizers": _regularizers,
        "learning rate": _learning_rate,
        "swag": _swag,
    }
)
"""Questions by name: functions of a study's settings."""
