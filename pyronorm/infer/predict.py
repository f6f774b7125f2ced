"""Posterior predictive distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.devices import check_memory, read_together, refuse_parts
from pyronorm.errors import DataError, OptionError
from pyronorm.infer.batch import MiniBatch, split
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.ensemble import Members, draw_members
from pyronorm.infer.lengths import num_batches
from pyronorm.infer.messages import refuse_non_finite
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.own_sites import check_own_sites, run_with_own_sites
from pyronorm.infer.posterior import as_posterior, choose_num_samples
from pyronorm.infer.precision import running_in
from pyronorm.infer.shares import Share
from pyronorm.inputs import all_finite, first_tensor, is_one_piece, num_examples, tensors_of
from pyronorm.latents import Draws
from pyronorm.latents.folding import compiled_calls
from pyronorm.likelihoods import Prediction
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.watch import unchecked
from pyronorm.progress import progress_bar
from pyronorm.randomness import Seed

__all__ = [
    "density_sum",
    "draws_for",
    "evaluate_draws",
    "log_likelihoods",
    "predict",
    "predictive_nll",
]

_ELEMENTS = 2**25  # of the outputs of all draws for a part of a batch


@checked
def predict(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: Count | None = None,
    *,
    batch_size: Count = 256,
    keep_samples: bool = True,
    precision: str | None = None,
    compile: bool = False,  # noqa: A002
    seed: Seed = None,
    progress: bool = True,
) -> Prediction:
    r"""Predict with a posterior: an average over draws of the latents.

    :math:`p(y | x) = \frac1S\sum_s p(y | x, z_s)` with :math:`z_s \sim q`. The same draws serve all
    examples, since the latents are global. The network is in evaluation mode for the time of the
    call; nothing is changed. Memory is bounded by ``batch_size`` and, per batch, by the chunks of
    :class:`~pyronorm.LatentNetwork`; a batch whose outputs for all draws are larger than an eighth of a
    gigabyte is evaluated in parts. Equal draws are evaluated once.

    Args:
        model: the model; for a :class:`pyronorm.Ensemble` one of its own.
        posterior: any :class:`~pyronorm.infer.Posterior`: one of :mod:`pyronorm.guides`, a statistics
            bank, draws or chains, an ensemble, a Pyro guide or MCMC run.
        data: inputs ``x``, alone or in pairs ``(x, y)`` of which ``y`` is not used.
        num_samples: ``S``, number of draws (of each member of an ensemble); None for all of
            stored draws, all rows of a bank of fewer than 32, and 32 else.
        batch_size: examples at once, where the data do not come in batches.
        keep_samples: whether to keep the mean given each draw, ``S`` times as large as ``mean``.
        precision: what the network runs in: ``"bf16-mixed"``, ``"16-mixed"`` or ``"32-true"``, in the
            words of Lightning Fabric; None for that of the caller's ``torch.autocast``. Predictions
            are in float32 at least.
        compile: compile the network (``torch.compile``), which takes a minute or more and is kept for
            later calls.
        seed: for the draws, see :func:`pyronorm.randomness.seeded`.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The prediction, on the model's device.

    Raises:
        OptionError: if ``posterior`` is none, or has not that many draws; if there is no such precision
            on the device; or if a network that samples sites of its own is to be compiled.
        DataError: if there are no data.
        StatisticsError: if population statistics are missing or stale.
        SizeError: if samples are to be kept and there is no memory for them.
    """
    running = running_in("predict", precision, model.network.like.device)
    batches = as_batches(data, batch_size)
    members = draws_for(model, posterior, num_samples, batches, seed, "predict")
    parts: list[Prediction] = []
    bar = progress_bar("predict", num_batches(batches), show=progress)
    with torch.no_grad(), bar as shown:
        found = evaluate_draws(
            members, batches, running=running, compile=compile, done=shown.advance
        )
        for _, output in found:
            if keep_samples and not parts:
                _check_kept(output, data)
            parts.append(model.likelihood.predict(output, keep_samples=keep_samples))
    return Prediction.join(parts)


def _check_kept(output: Tensor, data: Any) -> None:
    """Refuse to keep outputs that do not fit; ``output`` is that of the first examples."""
    examples = _length(data)
    if output.ndim > 1:
        check_memory(
            f"predict, {len(output)} draws for {examples:,} examples",
            output[:, :1].numel() * examples,
            output,
            "Predict with keep_samples=False, or take fewer draws or examples at a time.",
        )


def _length(data: Any) -> int:
    """How many examples there are, at least."""
    data = data[0] if isinstance(data, tuple) else getattr(data, "dataset", data)
    return len(data) if isinstance(data, Sized) else 1


def draws_for(
    model: NormalizationModel,
    posterior: Any,
    num_samples: Count | None,
    data: Data | None,
    seed: Seed,
    where: str,
    default: int = 32,
) -> Members:
    """Check a posterior and draw from it, by network.

    Args:
        model: the model.
        posterior: what the caller was given.
        num_samples: number of draws; None for all of stored draws, or ``default``.
        data: for posteriors that look at data.
        seed: for the draws.
        where: the caller, for messages.
        default: see ``num_samples``.

    Raises:
        OptionError: if the posterior is none, or has not that many draws.
    """
    found = as_posterior(posterior, where, model)
    number = choose_num_samples(found, num_samples, default, where)
    return draw_members(model, found, number, data, seed)


def evaluate_draws(
    members: Members,
    data: Data,
    batch_size: Count = 256,
    *,
    running: Callable[[], AbstractContextManager[object]] = nullcontext,
    compile: bool = False,  # noqa: A002
    done: Callable[[], None] = lambda: None,
) -> Iterator[tuple[MiniBatch, Tensor]]:
    """Evaluate networks for draws of their latents, batch by batch.

    Args:
        members: networks and the draws for each; each is in evaluation mode during a batch.
        data: in any of the forms of :data:`pyronorm.infer.data.Data`; iterated once.
        batch_size: examples at once, where the data do not come in batches.
        running: makes a context that networks run in.
        compile: whether they are compiled.
        done: called after each batch.

    Yields:
        For each batch, or part of it if outputs are large, the batch and the outputs of shape
        ``(sample, batch, *out)``, members one after the other, on the first network's device.

    Raises:
        DataError: if there are no data, or inputs that are not finite.
        StatisticsError: if population statistics are missing or stale.
        SizeError: if there is no memory for the outputs of all draws for a single example.
    """
    members = [(model, draws.to(model.network.like)) for model, draws in members]
    unique = [_of_each(draws) for _, draws in members]
    for model, draws in members:
        if compile and draws.others:
            raise OptionError(
                f"compile=True: the network samples {[*draws.others]} itself, which torch.compile "
                "cannot follow. Leave compile out."
            )
        refuse_parts(model.named_parameters())
        model.network.check_statistics()
    empty = True
    finite: dict[int, Tensor] = {}  # what lies on a device is read at the end, for all batches
    # Batch by batch through all members: a loader that shuffles has another order in each pass.
    rows = 0  # all
    for position, found in enumerate(as_batches(data, batch_size)):
        given = split(found)
        if any(tensor.is_floating_point() for tensor in tensors_of(given.x).values()):
            finite[position] = all_finite(given.x)
            if finite[position].device.type == "cpu":
                _refuse_non_finite(finite)
                finite.clear()
        if empty:
            whole = is_one_piece(given.x)
            first = given.x if whole else given.rows(0, 1).x
            with unchecked(), running():
                sizes = [
                    check_own_sites(
                        model, model.network.prepare(first), shift[:1], scale[:1], draws.others
                    )
                    for (model, draws), (shift, scale, _) in zip(members, unique, strict=True)
                ]
            number = sum(len(index) for _, _, index in unique)
            check_memory(
                f"the outputs of {number:,} draws for one example",
                number * max(sizes),
                members[0][0].network.like,
                "Take fewer draws at a time.",
            )
            if not whole:
                rows = max(1, _ELEMENTS // max(1, number * max(sizes)))
            empty = False
        parts = range(0, max(1, num_examples(given.x)), rows) if rows else range(1)
        for part in parts:
            batch = given.rows(part, rows) if rows else given
            ready = batch.to(members[0][0].network)
            outputs: list[Tensor] = []
            for (model, draws), (shift, scale, index) in zip(members, unique, strict=True):
                mine = model.network.prepare(batch.x) if outputs else ready.x
                # statistics were checked above
                with evaluation_mode(model), unchecked(), running(), compiled_calls(compile):
                    output = run_with_own_sites(model.network, mine, shift, scale, draws.others)
                if output.device.type == "cpu" and bool(output.isnan().any()):
                    refuse_non_finite("the network", model.network.network)
                output = output.to(torch.promote_types(output.dtype, torch.float32))[index]
                outputs.append(output.to(first_tensor(ready.x).device))
            yield ready, outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        done()
    if empty:
        raise DataError("data: there is no batch.")
    _refuse_non_finite(finite)


def _refuse_non_finite(finite: Mapping[int, Tensor]) -> None:
    for position, good in zip(finite, read_together([*finite.values()]), strict=True):
        if not good:
            raise DataError(f"data: batch {position} has inputs that are not finite.")


def _of_each(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Different draws, (draw, 1, channel) for all examples, and which of them each draw is."""
    shift, scale, index = draws.unique()
    return shift[:, None], scale[:, None], index


@torch.no_grad()
@checked
def log_likelihoods(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: Count | None = None,
    *,
    batch_size: Count = 256,
    seed: Seed = None,
) -> Tensor:
    """Log likelihood of each example under each draw, as often as the example counts.

    Args:
        model: the model.
        posterior: as in :func:`predict`.
        data: pairs ``(x, y)``, or ``(x, y, weight)``.
        num_samples: as in :func:`predict`.
        batch_size: examples at once, where the data do not come in batches.
        seed: for the draws.

    Returns:
        Shape ``(sample, example)``, in nats; 0 for an example whose values are all missing.

    Raises:
        OptionError: if ``posterior`` is none, or has not that many draws.
        DataError: if there is no ``y``, or ``y`` is impossible.
        ShapeError: if ``y`` does not fit the network's output.
    """
    parts: list[Tensor] = []
    batches = as_batches(data, batch_size)
    members = draws_for(model, posterior, num_samples, batches, seed, "log_likelihoods")
    for batch, output in evaluate_draws(members, batches):
        y, weight = batch.targets("log_likelihoods")
        if not parts:
            check_memory(
                f"log_likelihoods of {_length(data):,} examples, {len(output):,} draws",
                len(output) * _length(data),
                output,
                "Take fewer draws or examples at a time.",
            )
        parts.append(model.likelihood.log_prob(output, y, 1) * (1 if weight is None else weight))
    return torch.cat(parts, dim=1)


@torch.no_grad()
@checked
def predictive_nll(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: Count | None = None,
    *,
    batch_size: Count = 256,
    seed: Seed = None,
) -> float:
    r"""Mean negative log predictive density :math:`-\log\frac1S\sum_s p(y|x,z_s)`, in nats.

    The mean over examples with an observed value, each as often as it counts.

    Args:
        model: the model.
        posterior: as in :func:`predict`.
        data: pairs ``(x, y)``, or ``(x, y, weight)``.
        num_samples: as in :func:`predict`.
        batch_size: examples at once, where the data do not come in batches.
        seed: for the draws.
    """
    log_density, count = density_sum(model, posterior, data, num_samples, batch_size, seed)
    if not count:
        raise DataError("data: all values of y are missing, or count for nothing.")
    return -log_density / count


@torch.no_grad()
def density_sum(
    model: NormalizationModel,
    posterior: Any,
    data: Data,
    num_samples: int | None,
    batch_size: int,
    seed: Seed = None,
    share: Share | None = None,
) -> tuple[float, float]:
    """The sum of log predictive densities, and of how often examples count.

    Args:
        model: as in :func:`predictive_nll`, and so are the others.
        posterior: as there; it may look at all data.
        data: as there.
        num_samples: as there.
        batch_size: as there.
        seed: as there.
        share: which batches to sum over; None for all.
    """
    batches = as_batches(data, batch_size)
    members = draws_for(model, posterior, num_samples, batches, seed, "predictive_nll")
    like = members[0][0].network.like
    total = torch.zeros(2, dtype=torch.float64, device=like.device)
    for batch, output in evaluate_draws(members, batches if share is None else share.of(batches)):
        y, weight = batch.targets("predictive_nll")
        density = torch.logsumexp(model.likelihood.log_prob(output, y, 1), 0) - math.log(
            len(output)
        )
        present = model.likelihood.present(y)
        count = present.double() if weight is None else present * weight.double()
        total += torch.stack([(torch.where(present, density, 0.0) * count).sum(), count.sum()])
    log_density, number = total.tolist()  # read once: a device is not waited for in between
    return log_density, number
