"""The mode of the latents' posterior, and the curvature of the likelihood there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS

from pyronorm.checks import Count, Natural, checked
from pyronorm.devices import check_memory
from pyronorm.errors import DataError, OptionError
from pyronorm.guides import MAP, Curvature, Guide
from pyronorm.guides.laplace import log_prior_of
from pyronorm.infer.batch import split
from pyronorm.infer.counts import example_counts
from pyronorm.infer.data import Data, as_batches
from pyronorm.infer.jacobian import latent_jacobian
from pyronorm.infer.lengths import num_batches
from pyronorm.infer.modes import evaluation_mode
from pyronorm.infer.own_sites import check_own_sites
from pyronorm.infer.posterior import as_posterior
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel
from pyronorm.progress import progress_bar

__all__ = ["collect_curvature", "find_mode"]

_SPARE = 10  # rows that a low rank is collected with beside twice its own


@checked
def find_mode(
    model: NormalizationModel,
    data: Data,
    *,
    start: MAP | None = None,
    max_steps: Count = 200,
    batch_size: Count = 256,
) -> MAP:
    r"""The most probable latents of a trained network: the maximum of the posterior density.

    Of :math:`\log p(y | z) + \log p(z)` in :math:`z = (\text{shift}, \log\text{scale})`, by L-BFGS
    over all data from the neutral latents, without noise. The network stays as it is.

    Args:
        model: a trained model. Population statistics and weights are held.
        data: its training data, pairs ``(x, y)`` or ``(x, y, weight)``, without augmentation.
        start: where to begin; None for neutral latents.
        max_steps: iterations at most.
        batch_size: examples at once, where the data do not come in batches.

    Returns:
        A point, which is a posterior as every guide is.

    Raises:
        DataError: if there are no data or no ``y``, data are impossible, or the density is not finite.
        OptionError: if the data are not the model's ``num_data`` examples, or the prior or the
            network has sites besides the latents.
        StatisticsError: if population statistics are missing or stale.
    """
    where = "find_mode"
    batches = _checked_batches(model, data, batch_size, where)
    guide = MAP(model)
    if start is not None:
        start.check(model.space)
        guide.load_state_dict(start.state_dict())
    z = guide.loc.double().clone().requires_grad_()
    optimizer = LBFGS(
        [z],
        max_iter=max_steps,
        tolerance_grad=1e-9,
        tolerance_change=torch.finfo(guide.like.dtype).eps,
        line_search_fn="strong_wolfe",
    )

    seen: list[bool] = []  # the data, in a first pass

    def closure() -> Tensor:
        """Minus the log density per example, and its gradient."""
        loss, examples = -log_prior_of(model, where, z), 0
        (total,) = torch.autograd.grad(loss, z)
        loss = loss.detach()
        for batch in batches:
            given = split(batch).to(model.network)
            y, weight = given.targets(where)
            shift, log_scale = z.to(guide.like.dtype).chunk(2)
            output = model.network(given.x, shift, log_scale.exp())
            output = output.to(torch.promote_types(output.dtype, torch.float32))
            if not seen:
                model.likelihood.check_training(y, output.detach())
            observed, value = model.likelihood.objective(output, y, 0, weight)
            part = -observed.log_prob(value).sum()
            total = total + torch.autograd.grad(part, z)[0]
            loss = loss + part.detach()
            examples += len(y)
        if examples != model.num_data:
            raise OptionError(_other_number(where, model, examples))
        if not bool(torch.isfinite(loss) & total.isfinite().all()):
            raise DataError(
                f"{where}: the posterior density is not finite: it is {-loss.item():g}."
            )
        seen.append(True)
        z.grad = total / model.num_data
        return loss / model.num_data

    with evaluation_mode(model), torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        for parameter, value in zip(
            (guide.shift_loc, guide.log_scale_loc), z.chunk(2), strict=True
        ):
            parameter.copy_(value)
    guide.stamp(model)
    return guide


@torch.no_grad()
@checked
def collect_curvature(
    model: NormalizationModel,
    data: Data,
    at: Any = None,
    *,
    rank: Natural | None = None,
    batch_size: Count = 256,
    progress: bool = True,
) -> Curvature:
    r"""Collect the generalized Gauss-Newton matrix of the data in the latents.

    :math:`G = \sum_i J_i^\top \Lambda_i J_i` with the Jacobian of the output in
    :math:`z = (\text{shift}, \log\text{scale})` and the expected curvature :math:`\Lambda_i` of the
    log likelihood in the output (:meth:`pyronorm.likelihoods.Likelihood.curvature`). It is positive
    semidefinite everywhere, and the Hessian where the network is linear in ``z``. It costs a
    forward and as many backward passes over the data as there are outputs.

    Args:
        model: a trained model. Population statistics and weights are held.
        data: its training data, pairs ``(x, y)`` or ``(x, y, weight)``, without augmentation.
        at: the point: a guide that is one, or one stored draw. None for the mode of the posterior
            (:func:`find_mode`), where a Laplace approximation belongs; ``guides.Point(model)`` for
            neutral latents: noise around the network as it was trained.
        rank: how many leading eigenvectors to keep beside the diagonal, by a running decomposition
            of at least twice as many; 0 for the diagonal alone, and None for the whole matrix.
        batch_size: examples at once, where the data do not come in batches.
        progress: show a progress bar; see :mod:`pyronorm.progress`.

    Returns:
        The curvature, for :class:`pyronorm.guides.FullLaplace` and its siblings.

    Raises:
        DataError: if there are no data or no ``y``, an example lacks some of its values, or inputs
            are objects.
        OptionError: if the data are not the model's ``num_data`` examples, the likelihood's
            curvature is not known, ``at`` is no point, or there are fewer latents than ``rank``.
        ShapeError: if outputs are dense: neither ``(batch,)`` nor ``(batch, out)``.
        SizeError: if there is no memory for the matrix.
        StatisticsError: if population statistics are missing or stale.

    Source: Daxberger et al., "Laplace Redux" (NeurIPS 2021), for the matrix; Levy & Lindenbaum,
    "Sequential Karhunen-Loeve Basis Extraction" (2000), for the running decomposition.
    """
    where = "collect_curvature"
    batches = _checked_batches(model, data, batch_size, where)
    size = 2 * model.space.num_channels
    if rank is not None and rank > size:
        raise OptionError(f"{where}: rank must be at most {size}, the latents, got {rank}.")
    sums = _Sums(size, rank, model.network.like)
    z = find_mode(model, data, batch_size=batch_size).loc if at is None else _point(model, at)
    log_likelihood, examples = 0.0, 0
    with progress_bar("curvature", num_batches(batches), show=progress) as bar:
        for batch in batches:
            given = split(batch).to(model.network)
            y, weight = given.targets(where)
            with evaluation_mode(model):
                output, jacobian = latent_jacobian(model.network, given.x, z, where)
            count = example_counts(model.likelihood, y, weight, model.network.like, where)
            log_likelihood += float((model.likelihood.log_prob(output, y) * count).sum().double())
            flat = output.reshape(len(y), -1).double()
            eigenvalues, vectors = torch.linalg.eigh(model.likelihood.curvature(flat).double())
            root = vectors * (eigenvalues.clamp(min=0) * count.double()[:, None]).sqrt()[:, None]
            sums.add((root.mT @ jacobian.double()).flatten(0, 1))
            examples += len(y)
            bar.advance()
    if examples != model.num_data:
        raise OptionError(_other_number(where, model, examples))
    factor, rest = sums.result()
    weights = model.network.weights()
    return Curvature(model.space, z.double(), factor, rest, log_likelihood, weights)


class _Sums:
    """Adds up outer products of rows."""

    def __init__(self, size: int, rank: int | None, like: Tensor) -> None:
        self.rank = rank
        numbers = size**2 if rank is None else size * (2 * rank + _SPARE)
        zeros = like.new_zeros(0).double()
        check_memory(
            f"collect_curvature of {size:,} latents",
            numbers,
            zeros,
            "Keep less of it: rank=20, or rank=0 for the diagonal.",
        )
        self.matrix = zeros.new_zeros(size, size) if rank is None else None
        self.diagonal = zeros.new_zeros(size)
        self.rows = zeros.new_zeros(0, size)

    def add(self, rows: Tensor) -> None:
        """Add the outer product of each row with itself."""
        if self.matrix is not None:
            self.matrix += rows.T @ rows
            return
        self.diagonal += rows.square().sum(0)
        if self.rank:
            _, values, vectors = torch.linalg.svd(torch.cat([self.rows, rows]), full_matrices=False)
            kept = 2 * self.rank + _SPARE
            self.rows = (values[:, None] * vectors)[:kept]

    def result(self) -> tuple[Tensor, Tensor]:
        """Orthogonal rows, the longest first, and what they lack of the diagonal."""
        if self.matrix is not None:
            values, vectors = torch.linalg.eigh(self.matrix)
            factor = (vectors * values.clamp(min=0).sqrt()).T.flip(0).contiguous()
            return factor, torch.zeros_like(self.diagonal)
        factor = self.rows[: self.rank]
        return factor, (self.diagonal - factor.square().sum(0)).clamp(min=0)


def _checked_batches(
    model: NormalizationModel, data: Data, batch_size: int, where: str
) -> Iterable[Any]:
    """The batches; refuse a network without latents, or with sites of its own."""
    network = model.network
    network.refuse_plain(where)
    network.check_statistics()
    batches = as_batches(data, batch_size)
    first = next(iter(batches), None)
    if first is None:
        raise DataError("data: there is no batch.")
    neutral = network.like.new_zeros(1, 1, model.space.num_channels)
    check_own_sites(model, network.prepare(split(first).x), neutral, neutral + 1, {})
    return batches


def _point(model: NormalizationModel, at: Any) -> Tensor:
    where = "collect_curvature, at"
    found = as_posterior(at, where, model)
    if not (isinstance(found, Guide) and found.is_point) and not (
        isinstance(found, Draws) and len(found) == 1
    ):
        raise OptionError(
            f"{where}: expected a point, that is pyronorm.guides.MAP (of pyronorm.find_mode), "
            f"pyronorm.guides.Point, or one draw, got {type(found).__name__}, whose draws differ."
        )
    draws = found.draw(model, 1)
    return torch.cat([draws.shift[0], draws.scale[0].log()])


def _other_number(where: str, model: NormalizationModel, examples: int) -> str:
    return (
        f"{where}: the model is made for num_data={model.num_data} examples, got {examples}. For the "
        "posterior of a subset make a NormalizationModel of that size on the same network."
    )
