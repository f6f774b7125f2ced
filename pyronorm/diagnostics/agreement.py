"""How far draws of an approximate posterior are from draws of the posterior itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyronorm.checks import Count, Probability, checked
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.latents import Draws
from pyronorm.randomness import Seed, seed_value

__all__ = [
    "Agreement",
    "compare_draws",
    "correlation",
    "factorized_spread",
    "latent_vectors",
    "low_rank_spread",
    "sliced_wasserstein",
]


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    r"""An approximate posterior beside the posterior; :math:`m, s` are the posterior's moments.

    Attributes:
        mean_error: :math:`(m_q - m)/s` of each latent, shape ``(latent,)``.
        sd_ratio: :math:`s_q/s` of each latent, shape ``(latent,)``.
        coverage: share of the posterior's draws within the approximation's central interval of
            probability ``level``, shape ``(latent,)``.
        level: nominal probability of the interval.
        correlation_error: root mean square of the differences between the off-diagonal correlations;
            NaN where a latent does not vary.
        sliced_wasserstein: :func:`sliced_wasserstein` of the latents in units of ``s``.
    """

    mean_error: Float[Tensor, " latent"]
    sd_ratio: Float[Tensor, " latent"]
    coverage: Float[Tensor, " latent"]
    level: Probability
    correlation_error: float
    sliced_wasserstein: float


@checked
def latent_vectors(draws: Draws) -> Float[Tensor, "sample latent"]:
    """Shifts, then logarithms of scales, in one vector per draw; in double precision.

    Args:
        draws: draws of the latents.
    """
    return torch.cat([draws.shift, draws.scale.log()], -1).double().cpu()


@checked
def compare_draws(
    draws: Float[Tensor, "sample latent"],
    reference: Float[Tensor, "draw latent"],
    level: Probability = 0.9,
    num_directions: Count = 500,
    seed: Seed = 0,
) -> Agreement:
    """Compare draws of an approximate posterior with draws of the posterior.

    Args:
        draws: of the approximation, at least 2.
        reference: of the posterior, as from :func:`pyronorm.run_nuts`, at least 2; the numbers may
            differ. :func:`latent_vectors` makes both.
        level: probability of the central intervals whose coverage is measured.
        num_directions: directions of the Wasserstein distance.
        seed: seeds the directions; the same ones for every comparison.

    Raises:
        ShapeError: if the numbers of latents differ.
        OptionError: if there are fewer than 2 draws, or ``level`` is not between 0 and 1.
        DataError: if a draw is not finite, or a latent of the reference does not vary.
    """
    draws, reference = _checked(draws, reference, "compare_draws")
    if not 0 < level < 1:
        raise OptionError(f"compare_draws: level must be between 0 and 1, got {level}.")
    mean, std = reference.mean(0), reference.std(0)
    if not bool((std > 0).all()):
        raise DataError("compare_draws: the reference has a latent that does not vary.")
    ends = draws.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = draws.quantile(ends, dim=0)
    rest = ~torch.eye(len(mean), dtype=torch.bool)
    difference = (correlation(draws) - correlation(reference))[rest]
    return Agreement(
        mean_error=(draws.mean(0) - mean) / std,
        sd_ratio=draws.std(0) / std,
        coverage=((reference >= low) & (reference <= high)).double().mean(0),
        level=level,
        correlation_error=float(difference.square().mean().sqrt()),
        sliced_wasserstein=sliced_wasserstein(
            (draws - mean) / std, (reference - mean) / std, num_directions, seed
        ),
    )


@checked
def sliced_wasserstein(
    a: Float[Tensor, "sample dim"],
    b: Float[Tensor, "draw dim"],
    num_directions: Count = 500,
    seed: Seed = 0,
) -> float:
    r"""Sliced Wasserstein distance of order 1 between two sets of draws.

    .. math::
        \mathrm{SW}(a, b) = \mathbb E_\theta\, W_1(\theta^\top a, \theta^\top b), \qquad
        W_1(u, v) = \int |F_u(t) - F_v(t)|\, dt,

    with :math:`\theta` uniform on the unit sphere, an average over random directions. Draws of equal
    laws are at a positive distance of each other, of the order of one over the root of their number.

    Args:
        a: draws of the one.
        b: draws of the other; the numbers may differ.
        num_directions: how many directions.
        seed: seeds them, apart from torch's own generator.

    Returns:
        The distance, in the units of the draws.

    Raises:
        ShapeError: if the dimensions differ.
        OptionError: if there is no direction, or fewer than 2 draws.
        DataError: if a draw is not finite.

    Source: Bonneel, Rabin, Peyré & Pfister, "Sliced and Radon Wasserstein Barycenters of Measures"
    (JMIV 2015).
    """
    a, b = _checked(a, b, "sliced_wasserstein")
    if num_directions < 1:
        raise OptionError(
            f"sliced_wasserstein: num_directions must be at least 1, got {num_directions}."
        )
    generator = torch.Generator().manual_seed(seed_value(seed))
    theta = torch.randn(a.shape[1], num_directions, generator=generator, dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    u, v = ((x @ theta).T.contiguous().sort()[0] for x in (a, b))
    jumps = torch.cat([u, v], 1).sort()[0]
    below = jumps[:, :-1].contiguous()
    f_u, f_v = (torch.searchsorted(x, below, right=True) / x.shape[1] for x in (u, v))
    return float(((f_u - f_v).abs() * jumps.diff()).sum(1).mean())


@checked
def correlation(draws: Float[Tensor, "sample latent"]) -> Float[Tensor, "latent latent"]:
    """Correlation matrix of draws; NaN in the rows of latents that do not vary.

    Args:
        draws: at least 2.
    """
    centred = draws.double() - draws.double().mean(0)
    length = centred.norm(dim=0)
    found: Tensor = (centred.T @ centred) / (length[:, None] * length)
    return found


def _check_covariance(covariance: Tensor, where: str) -> None:
    if covariance.shape[0] != covariance.shape[1] or not len(covariance):
        raise ShapeError(f"{where}: covariance must be square, got {tuple(covariance.shape)}.")
    if not torch.allclose(
        covariance, covariance.T, rtol=1e-3, atol=1e-4 * float(covariance.abs().max())
    ):
        raise DataError(f"{where}: covariance must be symmetric, and it is not.")
    if int(torch.linalg.cholesky_ex(covariance.double()).info):
        raise DataError(f"{where}: covariance must be positive definite, and it is not.")


@checked
def factorized_spread(
    covariance: Float[Tensor, "latent latent"], block: Count = 1
) -> Float[Tensor, " latent"]:
    r"""Standard deviations that a factorized Gaussian has at the optimum of the ELBO.

    For a Gaussian posterior with precision :math:`\Lambda` the best product of independent Gaussians
    has precision :math:`\Lambda_{bb}` in each block ``b``. For single latents the standard deviation
    is :math:`1/\sqrt{\Lambda_{ii}}`, that of the latent given all others.

    Args:
        covariance: of the posterior, positive definite.
        block: members of a block: with 2, latent ``i`` goes with latent ``i + latent/2``, as
            the shift and log scale of a channel in :func:`latent_vectors`.

    Raises:
        OptionError: if the latents cannot be divided in such blocks.

    Source: Bishop, "Pattern Recognition and Machine Learning" (2006), section 10.1.2.
    """
    size = len(covariance)
    if size % block:
        raise OptionError(f"factorized_spread: {size} latents have no blocks of {block}.")
    _check_covariance(covariance, "factorized_spread")
    precision = covariance.double().inverse()
    # Latents of one block are size / block apart.
    member = torch.arange(size, device=covariance.device) % (size // block)
    inside = member[:, None] == member
    spread: Tensor = torch.where(inside, precision, 0.0).inverse().diagonal().sqrt()
    return spread


@checked
def low_rank_spread(
    covariance: Float[Tensor, "latent latent"], rank: Count
) -> Float[Tensor, " latent"]:
    r"""Standard deviations that a low-rank Gaussian has at the optimum of the ELBO.

    For a Gaussian posterior with precision :math:`\Lambda`, those of the
    :math:`Q = F F^\top + \mathrm{diag}(d^2)` that minimizes
    :math:`\mathrm{tr}(\Lambda Q) - \log\det Q`, twice the KL divergence up to a constant. Found by
    L-BFGS from the optimum without ``F``: a local optimum.

    Args:
        covariance: of the posterior, positive definite.
        rank: columns of ``F``.

    Raises:
        OptionError: if the rank is not between 1 and the number of latents.
    """
    size = len(covariance)
    if rank > size:
        raise OptionError(f"low_rank_spread: rank must be between 1 and {size}, got {rank}.")
    _check_covariance(covariance, "low_rank_spread")
    covariance = covariance.detach().double()
    precision = covariance.inverse()
    log_std = precision.diagonal().log() / -2
    values, vectors = torch.linalg.eigh(covariance)
    factor = (vectors[:, -rank:] * values[-rank:].sqrt() / 2).contiguous()
    parameters = [log_std.clone().requires_grad_(), factor.clone().requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe")

    def spread() -> Tensor:
        std, factor = parameters[0].exp(), parameters[1]
        q: Tensor = factor @ factor.T + torch.diag(std.square())
        return q

    def divergence() -> Tensor:
        optimizer.zero_grad()
        q = spread()
        value: Tensor = (precision * q).sum() - torch.logdet(q)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(divergence)
    found: Tensor = spread().detach().diagonal().sqrt()
    return found


def _checked(a: Tensor, b: Tensor, where: str) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"{where}: expected two sets of draws, (sample, latent), of the same latents, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}."
        )
    if min(len(a), len(b)) < 2:
        raise OptionError(f"{where}: needs at least 2 draws of each, got {len(a)} and {len(b)}.")
    a, b = (x.detach().double().cpu() for x in (a, b))
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise DataError(f"{where}: some draws are not finite.")
    return a, b
