"""Sample the truth, then judge every posterior by it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from pyronorm import datasets
from pyronorm.checks import checked
from pyronorm.conversion import convert
from pyronorm.diagnostics import (
    classification_metrics,
    compare_draws,
    correlation,
    factorized_spread,
    latent_vectors,
    low_rank_spread,
    pareto_k,
    to_arviz,
)
from pyronorm.files import StrPath
from pyronorm.guides import Guide, Point
from pyronorm.infer import (
    Objective,
    Optimization,
    collect_bank,
    fit,
    predict,
    predictive_nll,
    run_nuts,
)
from pyronorm.latents import Draws
from pyronorm.likelihoods import Categorical
from pyronorm.model import NormalizationModel
from pyronorm.study.device import make_fabric
from pyronorm.study.reference.keep import Keep, keep_in
from pyronorm.study.reference.posteriors import Candidate, choose_posteriors
from pyronorm.study.reference.result import Mixing, Result, Row
from pyronorm.study.reference.settings import Settings

__all__ = ["run"]

_Pair = tuple[Tensor, Tensor]

_LONG = 1000
"""Draws of NUTS from which on compiling its steps takes less time than it saves."""


@checked
def run(
    settings: Settings | None = None,
    candidates: Sequence[Candidate] | None = None,
    report: Callable[[str], None] | None = None,
    folder: StrPath | None = None,
    *,
    command: str = "",
    force: bool = False,
) -> Result:
    """Train a digits network, sample the posterior of its latents, and judge others by it.

    The network is a perceptron with two hidden layers, ``Linear, BatchNorm1d, ReLU`` each, trained as
    ordinary batch normalization and frozen then, normalizing with population statistics. NUTS samples
    the posterior of its latents given all training data. Guides are trained for the same posterior;
    implicit posteriors come from a statistics bank of the training. All of it runs in one thread.

    With a ``folder`` chains and what has been judged are kept in ``folder/kept``, and after an
    interruption or a kill the same call goes on: the network is trained again, to the same weights, and
    the seconds of a posterior are those since the last start.

    Args:
        settings: the problem; None for the defaults.
        candidates: from :func:`choose_posteriors`; None for all.
        report: called with the name of each job when it begins.
        folder: where to keep what is finished; None for nowhere.
        command: what is run, for the record in the folder.
        force: remove what an earlier run left in the folder.

    Returns:
        A row per posterior, with the two halves of the chains and all of them on top.

    Raises:
        OptionError: if the folder has results of other settings, or another run works in it.
        FileError: if it cannot be written.
    """
    settings = Settings() if settings is None else settings
    candidates = choose_posteriors() if candidates is None else candidates
    names = ["nuts", "nuts-half", *(candidate.name for candidate in candidates)]
    with _one_thread(), keep_in(folder, settings, names, command, force) as keep:
        return _run(settings, candidates, report, keep)


def _run(
    settings: Settings,
    candidates: Sequence[Candidate],
    report: Callable[[str], None] | None,
    keep: Keep,
) -> Result:
    say = report if report is not None else lambda job: None
    say("network")
    model, train, test = _problem(settings)
    torch.manual_seed(settings.seed)
    bank = collect_bank(model, train[0], settings.bank_rows, settings.batch_size)
    point = predict(model, Point(model), test[0], 1)
    say("nuts")
    with _clock() as clock:
        chains = run_nuts(
            model,
            train,
            settings.draws,
            settings.warmup,
            settings.chains,
            compile=settings.chains * settings.draws >= _LONG,
            seed=settings.seed,
            folder=keep.chains,
            progress=False,
        )
    judge = _Judge(model, train, test, latent_vectors(chains), settings)
    first, second = _halves(chains)
    rows = [
        keep("nuts", lambda: judge("nuts", chains, clock, None)),
        keep("nuts-half", lambda: judge("nuts-half", first, _Clock(), latent_vectors(second))),
    ]

    def judged(candidate: Candidate) -> tuple[Row, Any]:
        torch.manual_seed(settings.seed)
        with _clock() as clock:
            posterior = candidate.make(model, bank, train)
            if candidate.trained:
                _train(model, posterior, train, settings)
        return judge(candidate.name, posterior, clock, None)

    for candidate in candidates:
        say(candidate.name)
        rows.append(keep(candidate.name, partial(judged, candidate)))
    covariance = torch.cov(judge.truth.T)
    spread = covariance.diagonal().sqrt()
    return Result(
        settings=settings,
        candidates=tuple(candidates),
        layers={x.name: x.num_channels for x in model.space.layers},
        network=classification_metrics(point.mean, test[1]),
        mixing=_mixing(chains),
        correlation=correlation(judge.truth),
        gaussian_limits={
            "mean-field": factorized_spread(covariance) / spread,
            "paired": factorized_spread(covariance, 2) / spread,
            **{
                f"low-rank-{rank}": low_rank_spread(covariance, min(rank, len(spread))) / spread
                for rank in (5, 20)
            },
        },
        rows=tuple(rows),
        idatas=keep.idatas,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """For operations as small as these, threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _problem(settings: Settings) -> tuple[NormalizationModel, _Pair, _Pair]:
    data = datasets.load("digits", settings.seed)
    keep = slice(settings.num_data)
    train = data.train.x[keep].flatten(1), data.train.y[keep]
    test = data.test.x.flatten(1), data.test.y
    torch.manual_seed(settings.seed)
    width = settings.width
    network = nn.Sequential(
        *(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
        nn.Linear(width, 10),
    )
    model = NormalizationModel(convert(network), Categorical(), len(train[1]), settings.prior)
    fit(
        model,
        Point(model),
        train,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        fabric=make_fabric("cpu"),
        seed=settings.seed,
        progress=False,
    )
    return model, train, test


def _train(model: NormalizationModel, guide: nn.Module, train: _Pair, settings: Settings) -> None:
    """Every step sees all the data, so that only the draws are random."""
    fit(
        model,
        guide,
        train,
        epochs=settings.steps,
        batch_size=len(train[1]),
        lr=settings.guide_lr,
        optimization=Optimization(
            scheduler=lambda optimizer: LinearLR(optimizer, 1.0, 0.01, settings.steps)
        ),
        objective=Objective(elbo=_elbo(guide, settings.particles)),
        train_network=False,
        fabric=make_fabric("cpu"),
        seed=settings.seed,
        progress=False,
    )


def _elbo(guide: nn.Module, particles: int) -> ELBO:
    analytic = isinstance(guide, Guide) and guide.has_analytic_kl
    kind: Any = TraceMeanField_ELBO if analytic else Trace_ELBO
    options = {"vectorize_particles": True, "max_plate_nesting": 1} if particles > 1 else {}
    elbo: ELBO = kind(num_particles=particles, **options)
    return elbo


@dataclass
class _Clock:
    """Seconds on the wall, and of all processor cores together."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def _clock() -> Iterator[_Clock]:
    clock = _Clock()
    wall, cpu = time.perf_counter(), time.process_time()
    yield clock
    clock.wall, clock.cpu = time.perf_counter() - wall, time.process_time() - cpu


@dataclass
class _Judge:
    """Compares posteriors with the truth."""

    model: NormalizationModel
    train: _Pair
    test: _Pair
    truth: Tensor
    settings: Settings

    def __call__(
        self, name: str, posterior: Any, clock: _Clock, truth: Tensor | None
    ) -> tuple[Row, Any]:
        """Judge a posterior, by other draws than all of NUTS if ``truth`` is given.

        Returns:
            The row, and ArviZ data; None for a part of the chains.
        """
        settings = self.settings
        number, exported = settings.num_samples, settings.num_samples
        if isinstance(posterior, Draws):  # chains: all of them
            number, exported = min(number, len(posterior)), len(posterior)
        idata = to_arviz(
            self.model, posterior, self.train, exported, include_inputs=False, seed=settings.seed
        )
        # The draws that the diagnostics see are those that moments and intervals are taken of.
        shift, scale = (
            torch.from_numpy(idata["posterior"][site].values.copy()).flatten(0, 1)
            for site in ("shift", "scale")
        )
        draws = latent_vectors(Draws(shift, scale))
        agreement = compare_draws(
            draws,
            self.truth if truth is None else truth,
            settings.level,
            settings.directions,
            settings.seed,
        )
        nll = predictive_nll(self.model, posterior, self.test, number, seed=settings.seed)
        k, elbo, error = _by_density(idata)
        row = Row(name, agreement, draws, nll, k, elbo, error, clock.wall, clock.cpu)
        if truth is not None:
            return row, None
        del idata["posterior_predictive"]  # simulated training data: large, and of little use
        return row, idata


def _by_density(idata: Any) -> tuple[float, float, float]:
    """Pareto k, the ELBO and its standard error; NaN without a density."""
    stats = idata["sample_stats"]
    if "log_q" not in stats:
        return math.nan, math.nan, math.nan
    ratios = (stats["lp"].values - stats["log_q"].values).astype(np.float64).ravel()
    error = float(ratios.std(ddof=1) / math.sqrt(len(ratios)))
    return pareto_k(idata).k, float(ratios.mean()), error


def _halves(chains: Draws) -> tuple[Draws, Draws]:
    """The first and the second half of the chains."""
    half = chains.num_chains // 2
    middle = len(chains) // chains.num_chains * half
    parts = chains[:middle], chains[middle:]
    first, second = (
        replace(part, num_chains=number)
        for part, number in zip(parts, (half, chains.num_chains - half), strict=True)
    )
    return first, second


def _mixing(chains: Draws) -> Mixing:
    import arviz as az

    vectors = latent_vectors(chains).unflatten(0, (chains.num_chains, -1)).double().numpy()

    def of(measure: Any, **options: Any) -> Tensor:
        values = [float(measure(vectors[..., i], **options)) for i in range(vectors.shape[-1])]
        return torch.tensor(values, dtype=torch.float64)

    return Mixing(
        rhat=of(az.rhat),
        ess_bulk=of(az.ess),
        ess_tail=of(az.ess, method="tail", prob=(0.05, 0.95)),
        divergences=int(chains.stats["diverging"].sum()),
    )
