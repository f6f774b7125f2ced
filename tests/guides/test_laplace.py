"""Laplace's approximations against exact posteriors, and against each other."""

from __future__ import annotations

import math

import pytest
import torch

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError, SizeError, StatisticsError
from pyronorm.guides import Curvature, DiagonalLaplace, FullLaplace, LowRankLaplace, Point
from pyronorm.likelihoods import Normal
from pyronorm.priors import BatchNoise, HierarchicalBatchNoise, ScaleInvariant, Standard
from pyronorm.testing import GuideConformance, run_checks
from pyronorm.testing.posterior import small_inputs, small_model
from tests.guides.cases import make_model
from tests.guides.linear import linear_model
from tests.nets import mlp

KINDS = [DiagonalLaplace, LowRankLaplace, FullLaplace]
DOUBLE = torch.float64


def regression(n: int = 30):
    """A conjugate model: data, and the exact posterior of (shift, log scale)."""
    prior = Standard(0.7, 0.4)
    std = torch.tensor([0.5, 1.25], dtype=DOUBLE)  # exact in any precision
    model = linear_model(Normal(std), n, prior)
    x = torch.randn(n, 2, 6, dtype=DOUBLE)
    y = torch.randn(n, 2, dtype=DOUBLE) * 2
    rows, noise = x.flatten(0, 1), std.square().repeat(n)
    prior_variance = torch.tensor([0.49] * 3 + [0.16] * 3, dtype=DOUBLE)
    covariance = torch.linalg.inv(
        rows.T @ (rows / noise[:, None]) + prior_variance.reciprocal().diag()
    )
    mean = covariance @ (rows.T @ (y.flatten() / noise))
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(2 * n, dtype=DOUBLE), rows * prior_variance @ rows.T + noise.diag()
    )
    return model, (x, y), mean, covariance, float(marginal.log_prob(y.flatten()))


def trained(n: int = 50, prior=None):
    model = small_model(dtype=DOUBLE, prior=prior)
    return model, (small_inputs(n).double(), torch.arange(n) % 3)


def test_full_is_the_exact_posterior_of_a_conjugate_model() -> None:
    model, data, mean, covariance, evidence = regression()
    curvature = pn.collect_curvature(model, data, batch_size=7)
    posterior = FullLaplace.from_curvature(model, curvature)
    torch.testing.assert_close(posterior.loc, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(posterior.covariance(), covariance, rtol=0, atol=1e-6)
    assert posterior.log_marginal_likelihood.item() == pytest.approx(evidence, abs=1e-6)
    low_rank = LowRankLaplace.from_curvature(model, curvature)  # of full rank
    torch.testing.assert_close(low_rank.covariance(), covariance, rtol=0, atol=1e-6)
    assert low_rank.log_marginal_likelihood.item() == pytest.approx(evidence, abs=1e-6)


def test_linearized_outputs_are_exact_where_the_network_is_linear() -> None:
    model, data, mean, *_ = regression()
    curvature = pn.collect_curvature(model, data)
    new = torch.randn(5, 2, 6, dtype=DOUBLE)
    for kind in KINDS:
        posterior = kind.from_curvature(model, curvature)
        outputs, spread = pn.infer.linearized_outputs(model, posterior, new, batch_size=2)
        torch.testing.assert_close(outputs, new @ mean)
        torch.testing.assert_close(spread, new @ posterior.covariance() @ new.mT)
        linear = pn.predict_linearized(model, posterior, new, 7, batch_size=3, seed=1)
        sampled = pn.predict(model, posterior, new, 7, seed=1)
        torch.testing.assert_close(linear.outputs, sampled.outputs)


def test_linearized_predictions_leave_the_network_at_the_mode() -> None:
    model, data = trained()
    posterior = FullLaplace.from_curvature(model, pn.collect_curvature(model, data))
    found = pn.predict_linearized(model, posterior, data[0], 4000, seed=0)
    mean, covariance = pn.infer.linearized_outputs(model, posterior, data[0])
    error = 5 * (covariance.diagonal(dim1=1, dim2=2) / 4000).sqrt()
    assert ((found.outputs.mean(0) - mean).abs() < error).all()
    wide = pn.predict(model, posterior, data[0], 4000, seed=0).outputs.var(0)
    assert not torch.allclose(wide, found.outputs.var(0), rtol=0.05)


def test_diagonal_is_the_diagonal_of_the_precision() -> None:
    model, data = trained()
    curvature = pn.collect_curvature(model, data)
    full = FullLaplace.from_curvature(model, curvature)
    precision = torch.linalg.inv(full.covariance())
    diagonal = DiagonalLaplace.from_curvature(model, curvature)
    torch.testing.assert_close(diagonal.std, precision.diagonal().rsqrt())
    torch.testing.assert_close(diagonal.covariance(), diagonal.std.square().diag())
    alone = DiagonalLaplace.from_curvature(model, curvature.truncated(0))
    torch.testing.assert_close(alone.std, diagonal.std)
    assert alone.log_marginal_likelihood == diagonal.log_marginal_likelihood


def test_low_rank_keeps_the_leading_directions_and_the_diagonal() -> None:
    model, data = trained()
    curvature = pn.collect_curvature(model, data)
    matrix = curvature.factor.T @ curvature.factor
    values, vectors = torch.linalg.eigh(matrix)
    leading = (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T
    rest = (matrix - leading).diagonal()
    prior = FullLaplace.from_curvature(model, curvature).prior_precision
    low = LowRankLaplace.from_curvature(model, curvature.truncated(4))
    expected = torch.linalg.inv(leading + (rest + prior).diag())
    torch.testing.assert_close(low.covariance(), expected)
    assert low.rank == 4
    gaussian = torch.distributions.MultivariateNormal(low.loc, expected)
    draws = low.draw(model, 20_000, seed=0)
    z = torch.cat([draws.shift, draws.scale.log()], 1)
    density = gaussian.log_prob(z) - draws.scale.log().sum(1)
    torch.testing.assert_close(draws.log_density, density)
    std = expected.diagonal().sqrt()
    error = (z.T.cov() - expected) / (std * std[:, None])
    assert error.abs().max() < 5 * math.sqrt(2 / 20_000)
    torch.testing.assert_close(low.law().latents.variance, expected.diagonal())
    torch.testing.assert_close(low.law().latents.entropy(), gaussian.entropy())


def test_evidence_has_its_maximum_there() -> None:
    model, data, *_ = regression()
    curvature = pn.collect_curvature(model, data)
    for kind in KINDS:
        best = kind.from_evidence(model, curvature)
        delta = best.prior_precision[0].item()
        around = [
            kind.from_curvature(model, curvature, delta * by).log_marginal_likelihood
            for by in (0.9, 1.0, 1.1)
        ]
        assert around[0] < around[1] > around[2]
        assert around[1] == pytest.approx(best.log_marginal_likelihood.item())
    # MacKay's fixed point, for the whole matrix.
    matrix = curvature.factor.T @ curvature.factor
    eigenvalues = torch.linalg.eigvalsh(matrix)
    effective = (eigenvalues / (eigenvalues + delta)).sum()
    assert delta * best.loc.square().sum() == pytest.approx(effective.item(), rel=1e-4)


def test_the_prior_of_batch_noise_counts_by_its_curvature() -> None:
    n = 20.0
    model, data = trained(prior=BatchNoise(n))
    curvature = pn.collect_curvature(model, data)
    posterior = DiagonalLaplace.from_curvature(model, curvature)
    log_scale = posterior.loc[9:]
    expected = torch.cat([torch.full((9,), n, dtype=DOUBLE), 2 * n * (-2 * log_scale).exp()])
    torch.testing.assert_close(posterior.prior_precision, expected)


def test_an_improper_prior_leaves_it_to_the_data() -> None:
    model, data, *_ = regression()
    flat = linear_model(model.likelihood, 30, ScaleInvariant())
    posterior = FullLaplace.from_curvature(flat, pn.collect_curvature(flat, data))
    assert not posterior.prior_precision.any()
    x = data[0].clone()
    x[..., 2] = 0  # no data on one of them
    curvature = pn.collect_curvature(flat, (x, data[1]), Point(flat))
    for kind in KINDS:
        with pytest.raises(
            DataError, match="the precision of the latents is not positive definite"
        ):
            kind.from_curvature(flat, curvature)


def test_the_neutral_point_is_one_to_expand_at() -> None:
    model, data = trained()
    posterior = FullLaplace.from_curvature(model, pn.collect_curvature(model, data, Point(model)))
    assert not posterior.loc.any()
    median = posterior.median()
    assert torch.equal(median["scale"], torch.ones(9, dtype=DOUBLE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", ["mode", "neutral"])
def test_conformance(kind, at) -> None:
    class Suite(GuideConformance):
        def make(self, model):
            if model.prior.law(model.space, model.network.like).hyper:
                return kind(model)  # from_curvature refuses it, see below
            data = small_inputs(50).to(model.network.like.dtype), torch.arange(50) % 3
            point = Point(model) if at == "neutral" else None
            return kind.from_curvature(model, pn.collect_curvature(model, data, point))

    results = run_checks(Suite())
    skipped = {r for r in results.values() if r != "passed"}
    assert skipped <= {"skipped: it has no parameters", "skipped: has_analytic_kl = False"}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path) -> None:
    model, (x, y) = make_model(), (small_inputs(50), torch.arange(50) % 3)
    posterior = kind.from_curvature(model, pn.collect_curvature(model, (x, y)))
    pn.save(tmp_path / "a.safetensors", model, posterior)
    again, loaded = pn.load(tmp_path / "a.safetensors", mlp)
    before, after = (
        pn.predict(m, q, x, 5, seed=0).outputs for m, q in ((model, posterior), (again, loaded))
    )
    torch.testing.assert_close(after, before)
    assert loaded.log_marginal_likelihood == posterior.log_marginal_likelihood


def test_refusals(monkeypatch) -> None:
    model, data = trained()
    curvature = pn.collect_curvature(model, data)
    with pytest.raises(OptionError, match="has 4 of 18 rows"):
        FullLaplace.from_curvature(model, curvature.truncated(4))
    with pytest.raises(OptionError, match="the curvature is a diagonal"):
        LowRankLaplace.from_curvature(model, curvature.truncated(0))
    with pytest.raises(OptionError, match="rank must be between 0 and 18"):
        curvature.truncated(19)
    with pytest.raises(OptionError, match="rank must be between 1 and 18"):
        LowRankLaplace(model, 19)
    with pytest.raises(ShapeError, match="the curvature is of another network"):
        FullLaplace.from_curvature(small_model(hidden=4), curvature)
    hierarchical = small_model(dtype=DOUBLE, prior=HierarchicalBatchNoise(16.0))
    for precision in (None, 3.0):
        with pytest.raises(OptionError, match="has hyperparameters"):
            FullLaplace.from_curvature(
                hierarchical,
                pn.collect_curvature(hierarchical, data, Point(hierarchical)),
                precision,
            )
    neutral = pn.collect_curvature(model, data, Point(model))
    with pytest.raises(DataError, match=r"from_evidence, prior_precision: .* Give prior_precision"):
        FullLaplace.from_evidence(model, neutral)
    posterior = FullLaplace.from_curvature(model, curvature)
    with torch.no_grad():
        model.network.network[0].bias.add_(1)
    pn.trust_statistics(model.network.network)
    with pytest.raises(StatisticsError, match="the curvature is of other weights"):
        FullLaplace.from_curvature(model, curvature)
    for call in (pn.predict, pn.predict_linearized):
        with pytest.raises(StatisticsError, match="belongs to other weights"):
            call(model, posterior, data[0], 2)
    monkeypatch.setattr("pyronorm.devices._SMALL", 0)
    monkeypatch.setattr("pyronorm.devices.available_memory", lambda device: 1000)
    with pytest.raises(
        SizeError, match=r"FullLaplace of 18 latents: needs at least .* LowRankLaplace"
    ):
        FullLaplace(model)


def test_a_prior_that_ties_latents_to_each_other_is_refused() -> None:
    from dataclasses import dataclass

    import pyro.distributions as dist

    from pyronorm.laws import ScaleGivenShift
    from pyronorm.priors import Prior

    @dataclass(frozen=True)
    class Tied(Prior):
        def law(self, space, like):
            zeros = like.new_zeros(space.num_channels)
            return ScaleGivenShift(
                dist.Normal(zeros, 1.0).to_event(1),
                lambda shift: dist.LogNormal(shift, 1.0).to_event(1),
            )

    model, data = trained(prior=Tied())
    curvature = pn.collect_curvature(model, data)
    with pytest.raises(OptionError, match="ties latents to each other"):
        FullLaplace.from_curvature(model, curvature)
    assert FullLaplace.from_curvature(model, curvature, 4.0).prior_precision.unique().item() == 4


def test_curvature_says_what_it_is() -> None:
    model, data = trained()
    curvature = pn.collect_curvature(model, data)
    assert repr(curvature) == "Curvature(whole, 18 latents, cpu)"
    assert repr(curvature.truncated(3)) == "Curvature(rank 3, 18 latents, cpu)"
    assert repr(curvature.truncated(0)) == "Curvature(diagonal, 18 latents, cpu)"
    four = torch.zeros(4)
    with pytest.raises(ShapeError, match="mode must have 18 latents"):
        Curvature(model.space, four, four[None], four, 0.0)
