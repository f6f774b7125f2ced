"""Choosing a posterior and its temperature by held-out data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyronorm.checks import Count, check_count, checked
from pyronorm.devices import move
from pyronorm.diagnostics.calibrated import PLAIN, CalibratedPosterior, Candidate
from pyronorm.diagnostics.temperature import CrossFit, cross_fit
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.guides import BatchNoise, MonteCarloBatchNorm, Point, StochasticBatchNorm
from pyronorm.infer.bank import collect_bank
from pyronorm.infer.data import Data, gather
from pyronorm.infer.posterior import Posterior, as_posterior
from pyronorm.infer.predict import predict
from pyronorm.infer.predictive import learn_noise
from pyronorm.inputs import is_one_piece, map_tensors, num_examples
from pyronorm.latents import Per
from pyronorm.model import NormalizationModel
from pyronorm.normalizers import LatentNorm
from pyronorm.normalizers.freshness import batch_layers
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed, seeded

if TYPE_CHECKING:
    pass

__all__ = ["calibrate"]

_SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


@checked
def calibrate(
    model: NormalizationModel,
    validation: Data,
    *,
    train: Data | None = None,
    candidates: Mapping[str, Any] | None = None,
    learn: Per | str | None = None,
    num_samples: Count = 32,
    num_folds: int = 5,
    batch_size: Count = 256,
    seed: Seed = 0,
    progress: bool = True,
) -> CalibratedPosterior:
    r"""Choose a posterior for a trained network, and its temperature, by held-out data.

    The network stays as it is. Every candidate is judged by its predictive log likelihood at its
    own temperature, which is fitted to the other folds of the data, beside the plain network with a
    temperature, which costs nothing. A candidate is chosen only if it is better than that by more
    than two standard errors of the paired difference; the best of them then. So the choice does no
    harm but by chance.

    Args:
        model: the model with a trained network.
        validation: pairs ``(x, y)`` that the network was not trained on; hundreds, better thousands.
            Outputs for all of it and all draws are kept in memory.
        train: training data, for candidates that are read off batches of it; in tensors or a data set.
        candidates: posteriors by name, to be compared with the plain network. None for the law of batch
            noise with ``n`` from 4 to 1024 in every layer and, with batch normalizers and ``train``,
            Monte-Carlo batch normalization with batches of 8 to 512 examples and
            stochastic batch normalization. A guide trained by :func:`pyronorm.fit` is named here.
        learn: also a candidate whose ``n`` is learned by :func:`pyronorm.learn_noise`, for the
            "network", each "layer" or each "channel"; for each fold on the others. None for none: it
            takes ``num_folds + 1`` short trainings.
        num_samples: draws of each candidate.
        num_folds: parts of the data, for cross-fitting.
        batch_size: examples at once.
        seed: for folds, draws and banks.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The choice: :func:`pyronorm.predict`, :func:`pyronorm.evaluate` and :func:`pyronorm.save`
        take its ``model`` and ``posterior``. Printing it shows the comparison.

    Raises:
        OptionError: if a candidate is no posterior, the likelihood has no temperature, or ``train`` is
            given beside candidates that do not need it.
        ShapeError: if x and y differ in length.
        DataError: if there are fewer than two examples per fold, or they determine no temperature (the
            network predicts all of them right, or none better than by chance). A candidate for which
            they determine none is judged as it is.
        StatisticsError: if population statistics are missing or stale.

    Source: Ashukha, Lyzhov, Molchanov & Vetrov, "Pitfalls of In-Domain Uncertainty Estimation and
    Ensembling in Deep Learning" (ICLR 2020), for judging at the best temperature.
    """
    check_count("calibrate", "num_folds", num_folds, least=2)
    held_out = gather(validation, batch_size)
    x, (y, weight) = held_out.x, held_out.targets("calibrate")
    if weight is not None:
        raise DataError("calibrate: takes pairs (x, y), without weights.")
    if num_examples(x) != len(y):
        raise ShapeError(f"calibrate: got {num_examples(x)} inputs x and {len(y)} targets y.")
    if train is not None and candidates is not None:
        raise OptionError(
            "calibrate: train is for the candidates that are there without candidates=; leave one of "
            "them out. A posterior of batches is the candidate pyronorm.collect_bank(model, train)."
        )
    y = move(y, model.network.like.device)
    kept = model.likelihood.present(y)
    number = int(kept.sum())
    if number < 2 * num_folds:
        raise DataError(
            f"calibrate: {num_folds} folds need at least {2 * num_folds} examples, got {number}. Give "
            "more held-out data."
        )
    with (
        seeded(seed, model.network.like),
        progress_bar("calibrate", show=progress) as bar,
    ):
        folds = torch.randperm(number, device=y.device) % num_folds
        found = {}
        sizes = {}
        posteriors: dict[str, Posterior] = {}
        for name, size, posterior in _candidates(model, train, candidates, num_samples, batch_size):
            posteriors[name], sizes[name] = posterior, size
            bar.advance(f"calibrate: {name}")
            samples = 1 if name == PLAIN else num_samples
            prediction = predict(
                model, posterior, x, samples, batch_size=batch_size, progress=False
            )
            assert prediction.outputs is not None
            prediction = prediction.likelihood.predict(prediction.outputs[:, kept])
            undetermined = None if name == PLAIN else 1.0  # so much noise that nothing is left
            found[name] = cross_fit(prediction, y[kept], folds, undetermined=undetermined)
        if learn is not None:
            key = f"noise learned per {Per.of(learn).value}"
            bar.advance(f"calibrate: {key}")
            if key in found:
                raise OptionError(f"calibrate: {key!r} is taken; give the candidate another name.")
            posteriors[key], found[key] = _learned(
                model,
                map_tensors(lambda t: t[kept.to(t.device)], x),
                y[kept],
                folds,
                learn,
                num_samples,
                batch_size,
            )
            sizes[key] = None
    name = _choose({key: judged.cross_fitted for key, judged in found.items()})
    own = [found[_choice(found, folds, k)].densities[k][folds == k] for k in range(num_folds)]
    plain = found[PLAIN].cross_fitted
    rows = [
        Candidate(
            key,
            sizes[key],
            -float(judged.raw.mean()),
            -float(judged.cross_fitted.mean()),
            -float((judged.cross_fitted - plain).mean()),
            _standard_error(judged.cross_fitted - plain),
            judged.temperature,
        )
        for key, judged in found.items()
    ]
    tempered = model.likelihood.tempered(found[name].temperature)
    return CalibratedPosterior(
        NormalizationModel(
            model.network, copy.deepcopy(tempered), model.num_data, model.prior, model.draws
        ),
        posteriors[name],
        name,
        tuple(rows),
        -float(torch.cat(own).mean()),
        number,
    )


def _learned(
    model: NormalizationModel,
    x: Any,
    y: Tensor,
    folds: Tensor,
    per: Per | str,
    num_samples: int,
    batch_size: int,
) -> tuple[Posterior, CrossFit]:
    """Noise learned on all data; each fold is judged by what is learned on the others."""
    if is_one_piece(x):
        raise OptionError(
            "calibrate: learn= needs parts of the data, and these are objects (graphs, packed "
            "sequences). Learn on other data with pyronorm.learn_noise, and name the guide among the "
            "candidates."
        )

    def judged(some: Tensor) -> tuple[Posterior, CrossFit]:
        mine = map_tensors(lambda t: t[some.to(t.device)], x)
        guide = learn_noise(model, (mine, y[some]), per, batch_size=batch_size, progress=False)
        prediction = predict(model, guide, x, num_samples, batch_size=batch_size, progress=False)
        return guide, cross_fit(prediction, y, folds, undetermined=1.0)

    guide, whole = judged(torch.ones_like(folds, dtype=torch.bool))
    parts = [judged(folds != k)[1] for k in range(int(folds.max()) + 1)]
    densities = torch.stack([part.densities[k] for k, part in enumerate(parts)])
    raw = torch.stack([part.raw for part in parts])
    own = folds[None]
    return guide, replace(
        whole,
        by_fold=tuple(part.by_fold[k] for k, part in enumerate(parts)),
        raw=raw.gather(0, own)[0],
        densities=densities,
        cross_fitted=densities.gather(0, own)[0],
    )


def _choose(found: Mapping[str, Tensor]) -> str:
    """The best of those that beat the plain network by two standard errors, or that one."""
    plain = found[PLAIN]
    gains = {name: value - plain for name, value in found.items() if name != PLAIN}
    better = {
        name: float(gain.mean())
        for name, gain in gains.items()
        if float(gain.mean()) > 2 * _standard_error(gain)
    }
    return max(better, key=better.__getitem__) if better else PLAIN


def _choice(found: Mapping[str, CrossFit], folds: Tensor, k: int) -> str:
    """What the other folds would choose."""
    return _choose({name: judged.densities[k][folds != k] for name, judged in found.items()})


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


def _candidates(
    model: NormalizationModel,
    train: Data | None,
    given: Mapping[str, Any] | None,
    num_samples: Count,
    batch_size: Count,
) -> Iterator[tuple[str, float | None, Posterior]]:
    yield PLAIN, None, Point(model)
    if given is not None:
        if PLAIN in given:
            raise OptionError(
                'calibrate: "plain" is the network without noise, which is always there; give the '
                "candidate another name."
            )
        for name, posterior in given.items():
            found = as_posterior(posterior, f"calibrate, candidate {name!r}", model)
            yield name, None, found
        return
    for n in _SIZES:
        yield f"noise {n}", n, BatchNoise(model, n)
    layers = [layer for layer in batch_layers(model.network) if not layer.unused]
    suited = [k for k in layers if k.normalizer.shared_by_batch and k.normalizer.keeps_population]
    if train is None or not layers or len(suited) < len(layers):
        return
    x = gather(train, batch_size).x
    if num_examples(x) < 2 * _SIZES[1]:
        raise DataError(
            f"calibrate: train needs at least {2 * _SIZES[1]} examples for banks, got {num_examples(x)}."
        )
    for n in _SIZES[1:-1]:
        if 2 * n <= num_examples(x) and all(_takes(layer, n) for layer in layers):
            bank = collect_bank(model, x, num_samples, n, progress=False)
            yield f"Monte-Carlo batch {n}", n, MonteCarloBatchNorm(model, bank)
            if n == 32:
                yield "stochastic batch 32", n, StochasticBatchNorm(model, bank)


def _takes(layer: LatentNorm, n: int) -> bool:
    return layer.normalizer.fixed_batch_size in (None, n)
