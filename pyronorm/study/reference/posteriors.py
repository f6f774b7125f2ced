"""The posteriors that are judged: explicit and implicit ones, and two of Pyro's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal
from torch import Tensor, nn
from torch.optim import SGD

from pyronorm import guides
from pyronorm.checks import checked
from pyronorm.errors import OptionError
from pyronorm.guides import StatisticsBank
from pyronorm.infer import CollectSWAG, Optimization, collect_curvature, find_mode, fit
from pyronorm.latents import Per
from pyronorm.model import NormalizationModel, init_to_neutral
from pyronorm.study.device import make_fabric

__all__ = ["POSTERIORS", "Candidate", "choose_posteriors"]

# Of SWAG's path. The rate decides the width; this one is a round number, and fits nothing.
_SWAG_STEPS, _SWAG_RATE, _SWAG_BATCH, _SWAG_RANK = 1_000, 1.0, 64, 20

_Pair = tuple[Tensor, Tensor]
_Make = Callable[[NormalizationModel, StatisticsBank, _Pair], nn.Module]


@dataclass(frozen=True)
class Candidate:
    """A posterior to be judged.

    Attributes:
        name: its name in tables.
        make: makes it from the model, a statistics bank of the network and its training data.
        trained: whether it is trained by variational inference; else it is as it is made.
        description: one line for the report.
    """

    name: str
    make: _Make
    trained: bool
    description: str


def _rank(model: NormalizationModel, rank: int) -> int:
    """No more than there are latents."""
    return min(rank, 2 * model.space.num_channels)


def _low_rank(rank: int, neutral: bool = False) -> _Make:
    return lambda m, *_: guides.LowRank(m, _rank(m, rank), neutral=neutral)


def _size(per: Per) -> _Make:
    return lambda m, b, _: guides.EffectiveBatchSize(m, b.batch_size, per)


def _of_bank(make: Callable[[NormalizationModel, StatisticsBank], nn.Module]) -> _Make:
    return lambda m, b, _: make(m, b)


def _laplace(kind: type[guides.Laplace], rank: int | None = None, neutral: bool = False) -> _Make:
    def make(model: NormalizationModel, _: StatisticsBank, train: _Pair) -> nn.Module:
        at = guides.Point(model) if neutral else None
        rows = None if rank is None else _rank(model, rank)
        return kind.from_curvature(model, collect_curvature(model, train, at, rank=rows))

    return make


def _swag(model: NormalizationModel, train: _Pair) -> nn.Module:
    collected = CollectSWAG(_rank(model, _SWAG_RANK), after=_SWAG_STEPS // 5)
    size = len(train[1])
    batch_size = min(_SWAG_BATCH, size)
    fit(
        model,
        find_mode(model, train),
        train,
        epochs=-(-_SWAG_STEPS * batch_size // size),
        batch_size=batch_size,
        optimization=Optimization(optimizer=lambda groups: SGD(groups, lr=_SWAG_RATE)),
        train_network=False,
        callbacks=[collected],
        fabric=make_fabric("cpu"),
        seed=0,
        progress=False,
    )
    return collected.posterior(model)


_ROWS: tuple[tuple[str, bool, str, _Make], ...] = (
    ("mean-field", True, "independent latents", lambda m, *_: guides.MeanField(m)),
    (
        "mean-field-neutral",
        True,
        "independent latents, locations held at neutral",
        lambda m, *_: guides.MeanField(m, neutral=True),
    ),
    ("paired", True, "shift and log scale of a channel correlated", lambda m, *_: guides.Paired(m)),
    (
        "paired-neutral",
        True,
        "the same, locations held at neutral",
        lambda m, *_: guides.Paired(m, neutral=True),
    ),
    ("low-rank-5", True, "joint Gaussian, rank 5 and a diagonal", _low_rank(5)),
    ("low-rank-20", True, "joint Gaussian, rank 20 and a diagonal", _low_rank(20)),
    ("flow", True, "inverse autoregressive flow, two layers", lambda m, *_: guides.Flow(m)),
    (
        "mixture",
        True,
        "a mixture of Gaussians, independent latents",
        lambda m, *_: guides.Mixture(m),
    ),
    (
        "auto-low-rank",
        True,
        "Pyro's AutoLowRankMultivariateNormal, rank 20",
        lambda m, *_: AutoLowRankMultivariateNormal(
            m, init_loc_fn=init_to_neutral, init_scale=0.1, rank=_rank(m, 20)
        ),
    ),
    (
        "auto-full",
        True,
        "Pyro's AutoMultivariateNormal: a Gaussian with full covariance",
        lambda m, *_: AutoMultivariateNormal(m, init_loc_fn=init_to_neutral, init_scale=0.1),
    ),
    ("batch-size-network", True, "batch-noise law, one n learned", _size(Per.NETWORK)),
    ("batch-size-layer", True, "batch-noise law, n learned per layer", _size(Per.LAYER)),
    ("batch-size-channel", True, "batch-noise law, n learned per channel", _size(Per.CHANNEL)),
    ("map", False, "the mode: the most probable latents", lambda m, _, t: find_mode(m, t)),
    (
        "laplace-diagonal",
        False,
        "Laplace at the mode, diagonal of the Gauss-Newton matrix",
        _laplace(guides.DiagonalLaplace, 0),
    ),
    (
        "laplace-low-rank-20",
        False,
        "Laplace at the mode, 20 leading directions and a diagonal",
        _laplace(guides.LowRankLaplace, 20),
    ),
    (
        "laplace-full",
        False,
        "Laplace at the mode, whole Gauss-Newton matrix",
        _laplace(guides.FullLaplace),
    ),
    (
        "laplace-full-neutral",
        False,
        "the same around neutral latents",
        _laplace(guides.FullLaplace, neutral=True),
    ),
    (
        "swag",
        False,
        f"SWAG from the mode: SGD of rate {_SWAG_RATE:g} on batches of {_SWAG_BATCH}",
        lambda m, _, t: _swag(m, t),
    ),
    (
        "fixed-noise",
        False,
        "batch-noise law, n = batch size",
        lambda m, b, _: guides.BatchNoise(m, b.batch_size),
    ),
    (
        "population",
        False,
        "what finite data leave open about the population statistics",
        lambda m, b, _: guides.PopulationStatistics.from_bank(m, b, m.num_data),
    ),
    (
        "mcbn",
        False,
        "Monte-Carlo batch normalization: rows of a bank",
        _of_bank(guides.MonteCarloBatchNorm),
    ),
    (
        "stochastic-bn",
        False,
        "stochastic batch normalization: moments",
        _of_bank(guides.StochasticBatchNorm),
    ),
    (
        "bank-paired",
        False,
        "Gaussian of the bank, channel by channel",
        _of_bank(guides.Paired.from_bank),
    ),
    (
        "bank-low-rank",
        False,
        "joint Gaussian of the bank, rank 20",
        lambda m, b, _: guides.LowRank.from_bank(m, b, _rank(m, 20)),
    ),
    ("point", False, "no noise: the network as trained", lambda m, *_: guides.Point(m)),
)

POSTERIORS: Mapping[str, Candidate] = {
    name: Candidate(name, make, trained, text) for name, trained, text, make in _ROWS
}
"""The posteriors that ``pyronorm reference`` knows, by name."""


@checked
def choose_posteriors(names: str | Iterable[str] | None = None) -> list[Candidate]:
    """Look posteriors up by name.

    Args:
        names: names of :data:`POSTERIORS`; a list, or a string with commas. None for all.

    Raises:
        OptionError: for an unknown name; the message lists the choices.
    """
    if names is None:
        return list(POSTERIORS.values())
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    chosen = {}
    for name in names:
        if name not in POSTERIORS:
            near = difflib.get_close_matches(name, POSTERIORS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"no posterior {name!r}.{hint} Choose from {', '.join(POSTERIORS)}.")
        chosen[name] = POSTERIORS[name]
    if not chosen:
        raise OptionError("reference: needs at least one posterior.")
    return list(chosen.values())
