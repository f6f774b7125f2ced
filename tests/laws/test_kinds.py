"""Oracles: Pyro's own traces, Monte Carlo, closed forms of Gaussians."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyronorm import laws
from pyronorm.errors import NoDensityError, OptionError, ShapeError
from pyronorm.laws import (
    Hierarchical,
    Independent,
    Joint,
    Rows,
    ScaleGivenShift,
    ShiftGivenScale,
)
from pyronorm.laws.law import log_normal, normal
from tests.priors.laws import space

C = 3
LOC, STD = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.5, 1.2, 0.8])
SPACE = space(C, "net.")


def independent() -> Independent:
    return Independent(normal(LOC, STD), log_normal(-LOC, STD / 2))


def scale_given_shift() -> ScaleGivenShift:
    def alone():
        return log_normal(-LOC, torch.hypot(0.4 * STD, STD / 2))

    return ScaleGivenShift(
        normal(LOC, STD), lambda shift: log_normal(0.4 * (shift - LOC) - LOC, STD / 2), alone
    )


def joint() -> Joint:
    torch.manual_seed(3)
    factor = torch.randn(2 * C, 2) * 0.3
    mean, diagonal = torch.cat([LOC, -LOC]), torch.cat([STD, STD]) / 4
    return Joint(dist.LowRankMultivariateNormal(mean, factor, diagonal))


def hierarchical() -> Hierarchical:
    df = dist.Gamma(torch.tensor([4.0]), torch.tensor([2.0])).to_event(1)
    return Hierarchical(
        {"net.df": df}, lambda h: Independent(normal(0 * LOC, h["net.df"]), log_normal(LOC, STD))
    )


LAWS = {
    "Independent": independent,
    "ScaleGivenShift": scale_given_shift,
    "ShiftGivenScale": lambda: ShiftGivenScale(
        lambda scale: normal(0 * scale, 1 / scale), log_normal(LOC, STD)
    ),
    "Joint": joint,
    "Hierarchical": hierarchical,
}
kinds = pytest.mark.parametrize("kind", LAWS)


@kinds
@pytest.mark.parametrize("plates", [(), (5, 1)])
def test_log_density_is_that_of_the_pyro_sites(kind, plates):
    law = LAWS[kind]()

    def sites():
        with pyro.plate_stack("p", plates):
            return law.sample(SPACE)

    trace = poutine.trace(sites).get_trace()
    trace.compute_log_prob()
    values = trace.nodes["_RETURN"]["value"]
    shift, scale = values.pop("net.shift"), values.pop("net.scale")
    assert shift.shape == scale.shape == (*plates, C)
    assert set(values) == set(law.hyper)
    expected = sum(
        site["log_prob"]
        for site in trace.nodes.values()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    )
    torch.testing.assert_close(law.log_prob(shift, scale, values), expected, rtol=1e-5, atol=1e-5)


@kinds
def test_draws_are_those_of_the_sites_with_their_density(kind):
    law = LAWS[kind]()
    torch.manual_seed(7)
    draws = law.draw(6)
    torch.manual_seed(7)
    with pyro.plate("draws", 6, dim=-2):
        values = law.sample(SPACE)
    torch.testing.assert_close(draws.shift, values["net.shift"].squeeze(1))
    torch.testing.assert_close(draws.scale, values["net.scale"].squeeze(1))
    density = law.log_prob(draws.shift, draws.scale, draws.hyper)
    torch.testing.assert_close(draws.log_density, density, rtol=1e-5, atol=1e-5)
    assert set(draws.hyper) == set(law.hyper)


def test_gradients_pass_through_draws():
    loc = LOC.clone().requires_grad_()
    draws = Independent(normal(loc, STD), log_normal(loc, STD)).draw(4)
    (draws.shift.sum() + draws.scale.log().sum()).backward()
    assert torch.equal(loc.grad, torch.full((C,), 8.0))


@pytest.mark.parametrize("kind", ["Independent", "ScaleGivenShift", "Joint"])
def test_quantiles_are_those_of_many_draws(kind):
    """Within 5 standard errors of the share of 20,000 draws below."""
    law = LAWS[kind]()
    torch.manual_seed(0)
    draws = law.draw(20_000)
    q = torch.tensor([0.1, 0.5, 0.8])
    for found, values in zip(law.quantiles(q), (draws.shift, draws.scale), strict=True):
        share = (values[:, None] < found).double().mean(0)
        error = 5 * (q * (1 - q) / 20_000).sqrt()[:, None]
        assert ((share - q[:, None]).abs() < error).all()


@pytest.mark.parametrize("kind", ["Independent", "Joint"])
def test_entropy_is_that_of_many_draws(kind):
    law = LAWS[kind]()
    torch.manual_seed(0)
    terms = -law.draw(20_000).log_density
    assert abs(terms.mean() - law.entropy()) < 5 * terms.std() / math.sqrt(20_000)


def test_rows():
    rows = torch.arange(8.0).view(4, 2)
    law = Rows(rows, rows + 1, "the test")
    draws = law.draw(50)
    assert draws.log_density is None
    assert {tuple(r) for r in draws.shift.tolist()} == {tuple(r) for r in rows.tolist()}
    assert torch.equal(draws.scale, draws.shift + 1)
    torch.testing.assert_close(law.quantiles(torch.tensor([0.5]))[0], torch.tensor([[3.0, 4.0]]))
    with pytest.raises(NoDensityError, match="no density"):
        law.log_prob(rows, rows)


def test_a_point_has_draws_and_no_density():
    zeros = torch.zeros(C)
    law = Independent(dist.Delta(zeros, event_dim=1), dist.Delta(zeros + 1, event_dim=1))
    draws = law.draw(2)
    assert draws.log_density is None
    assert torch.equal(draws.scale, torch.ones(2, C))
    assert torch.equal(law.quantiles(torch.tensor([0.2, 0.9]))[1], torch.ones(2, C))


def test_refusals():
    vector = normal(LOC, STD)
    with pytest.raises(ShapeError, match=r"distribution of shift .* Is \.to_event\(1\) missing\?"):
        Independent(dist.Normal(LOC, STD), vector)
    with pytest.raises(OptionError, match="scale must be a Pyro distribution"):
        Independent(vector, torch.distributions.LogNormal(LOC, STD))
    with pytest.raises(ShapeError, match="distribution of scale"):
        ScaleGivenShift(vector, lambda shift: dist.LogNormal(shift, 1.0)).draw(4)
    with pytest.raises(ShapeError, match=r"event shape \(2 \* channel,\), got \(3,\)"):
        Joint(vector)
    with pytest.raises(OptionError, match=r"needs the hyperparameters \['net\.df'\]"):
        hierarchical().log_prob(LOC, STD)
    for law in (LAWS["ShiftGivenScale"](), hierarchical()):
        with pytest.raises(OptionError, match="no closed form here, so there are no exact medians"):
            law.quantiles(torch.tensor([0.5]))
        with pytest.raises(OptionError, match="the entropy has no closed form"):
            law.entropy()
    student = Independent(dist.StudentT(5.0, LOC, STD).to_event(1), log_normal(LOC, STD))
    with pytest.raises(OptionError, match="StudentT has no quantile function"):
        student.quantiles(torch.tensor([0.5]))
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2 * C), 1.0).to_event(1),
        [dist.transforms.affine_autoregressive(2 * C)],
    )
    for method in (Joint(flow).entropy, Joint(flow).marginals):
        with pytest.raises(OptionError, match="no closed form"):
            method()


def test_public_names():
    assert set(laws.__all__) >= {*LAWS, "Rows", "Law", "kl"}
