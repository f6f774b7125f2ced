"""Oracle: exact leave-one-out densities of the linear-Gaussian model, by integration."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import torch

from pyronorm import to_arviz
from pyronorm.diagnostics import LeaveOneOut, compare, loo
from pyronorm.errors import OptionError
from pyronorm.guides import MeanField
from pyronorm.latents import Draws
from pyronorm.priors import BatchNoise, Standard
from tests.guides.cases import make_bank, make_guide, make_model
from tests.guides.conjugate import Conjugate

OLD = az.__version__.startswith("0.")
# ArviZ's own, where the tests call it; loo has it in the caveat instead
pytestmark = pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")


def problem_and_guide(shrink: float = 1.0, problem: Conjugate | None = None):
    """Mean field with the posterior's means and standard deviations, or narrower."""
    problem = problem or Conjugate(Standard(), num_data=30, offset=0.2)
    weight = problem.posterior()
    guide = MeanField(problem.model).double()
    with torch.no_grad():
        for name in ("shift", "log_scale"):
            grid = getattr(problem, name)
            mean = (weight * grid).sum()
            std = (weight * (grid - mean).square()).sum().sqrt()
            getattr(guide, f"{name}_loc").fill_(mean)
            getattr(guide, f"{name}_log_std").fill_((shrink * std).log())
    return problem, guide


def exact_loo(problem: Conjugate) -> torch.Tensor:
    """log p(y_i | the others) = -log E[1/p(y_i | z)] under the posterior."""
    weight = problem.posterior()
    x_hat = (problem.x[:, 0] - 0.5) / (2.0 + 1e-5) ** 0.5
    std = problem.model.likelihood.std.item()
    found = []
    for x, y in zip(x_hat, problem.y[:, 0], strict=True):
        mean = 1.3 * problem.log_scale.exp() * (x + problem.shift) + 0.4
        log_p = -((y - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
        # The far corners have neither weight nor density: leave them out before dividing.
        inside = weight > 1e-12
        found.append(-torch.logsumexp(weight[inside].log() - log_p[inside], 0))
    return torch.stack(found)


def test_the_correction_gives_the_exact_posteriors_value():
    """6,000 draws of too wide a guide: off without the correction, within 0.05 with it."""
    problem, guide = problem_and_guide(1.4)
    idata = to_arviz(problem.model, guide, (problem.x, problem.y), 6000, seed=3)
    found = loo(idata)
    assert found.corrected
    exact = exact_loo(problem)
    assert found.elpd == pytest.approx(exact.sum().item(), abs=0.05)
    assert found.se == pytest.approx((len(exact) * exact.var(correction=0)).sqrt().item(), rel=0.02)
    pointwise = found.arviz.loo_i if OLD else found.arviz.elpd_i
    np.testing.assert_allclose(pointwise.values.ravel(), exact.numpy(), atol=0.03)
    assert found.pareto_k.shape == (30,)
    plain = az.loo(idata, pointwise=True, reff=1.0)
    without = float(plain.elpd_loo if OLD else plain.elpd)
    assert abs(without - exact.sum().item()) > 0.3  # the number of parameters doubles
    # p is the same by its definition: log density of the draws minus elpd.
    log_p = idata["log_likelihood"]["y"].values[0, ..., 0]
    lppd = np.log(np.exp(log_p).mean(0)).sum()
    assert found.p == pytest.approx(lppd - found.elpd, rel=1e-3)


def data(n: int = 50):
    return torch.randn(n, 5), torch.randint(3, (n,))


def test_without_a_density_it_is_arvizs_own_and_says_so():
    model = make_model()
    given = data()
    for posterior, name in (
        (make_bank(model), "StatisticsBank"),
        (make_guide("MonteCarloBatchNorm", model), "MonteCarloBatchNorm"),
        (make_guide("Point", model), "Point"),
    ):
        idata = to_arviz(model, posterior, given, 40, seed=1)
        found = loo(idata)
        assert not found.corrected
        assert found.caveat.startswith(f"not corrected: {name} has no density log q")
        if name != "Point":
            plain = az.loo(idata, pointwise=True, reff=1.0)
            assert found.elpd == pytest.approx(float(plain.elpd_loo if OLD else plain.elpd))
        else:  # equal draws: nothing to leave out
            log_p = idata["log_likelihood"]["y"].values[0, 0]
            assert found.elpd == pytest.approx(log_p.sum(), rel=1e-5)


def test_examples_without_any_scatter_among_others():
    """A saturated example: its density is the same in all draws."""
    model = make_model()
    idata = to_arviz(model, make_bank(model), data(), 40)
    log_p = idata["log_likelihood"]["y"].values
    log_p[..., 3] = -0.25
    found = loo(idata)
    assert math.isnan(found.pareto_k[3])
    assert np.isfinite(np.delete(found.pareto_k, 3)).all()
    pointwise = found.arviz.loo_i if OLD else found.arviz.elpd_i
    assert float(pointwise[3]) == pytest.approx(-0.25)
    assert np.isfinite(pointwise.values).all()


def test_chains_need_no_correction():
    problem = Conjugate(Standard(), num_data=30, offset=0.2)
    # Draws of the exact posterior, on its grid.
    index = torch.multinomial(problem.posterior().flatten(), 4000, replacement=True)
    shift, log_scale = (getattr(problem, k).flatten()[index] for k in ("shift", "log_scale"))
    chains = Draws(
        shift[:, None],
        log_scale.exp()[:, None],
        num_chains=2,
        stats={"diverging": torch.zeros(4000, dtype=torch.bool)},
    )
    idata = to_arviz(problem.model, chains, (problem.x, problem.y))
    found = loo(idata)
    assert (found.corrected, found.caveat) == (False, "")
    assert found.elpd == pytest.approx(exact_loo(problem).sum().item(), abs=0.1)


def test_large_k_is_in_the_caveat():
    problem, guide = problem_and_guide(0.2)
    with torch.no_grad():
        guide.shift_loc.add_(1.0)
    found = loo(to_arviz(problem.model, guide, (problem.x, problem.y), 200, seed=1))
    large = int((found.pareto_k > found.threshold).sum())
    assert large > 0
    assert found.threshold == pytest.approx(1 - 1 / math.log10(200))
    assert found.caveat.startswith(f"{large} of 30 examples have a Pareto k above 0.57")


def test_there_is_no_estimate_where_most_k_are_too_large():
    """A guide far too narrow: ArviZ's number is above that of the exact posterior, and means nothing."""
    problem, guide = problem_and_guide(0.02)
    with torch.no_grad():
        guide.shift_loc.add_(0.3)
    idata = to_arviz(problem.model, guide, (problem.x, problem.y), 200, seed=1)
    found = loo(idata)
    assert (found.pareto_k > found.threshold).sum() > 15
    assert math.isnan(found.elpd)
    assert math.isnan(found.se)
    assert math.isnan(found.p)
    assert "no estimate: evaluate on held-out data" in found.caveat
    number = found.arviz.elpd_loo if OLD else found.arviz.elpd
    assert math.isfinite(number)


@pytest.mark.parametrize("others", [0, 1, 2])
def test_compare_puts_those_without_an_estimate_last(others: int):
    problem, _ = problem_and_guide()
    spreads = {"narrow": 0.02, "very narrow": 0.01, "good 0": 1.2, "good 1": 1.3}
    idatas = {}
    for name, spread in list(spreads.items())[: 2 + others]:
        guide = problem_and_guide(spread, problem)[1]
        with torch.no_grad():
            guide.shift_loc.add_(0.3 * (spread < 1))
        idatas[name] = to_arviz(problem.model, guide, (problem.x, problem.y), 400, seed=1)
    table = compare(idatas)
    column = "elpd_loo" if OLD else "elpd"
    assert list(table.index[-2:]) == ["narrow", "very narrow"]
    assert list(table["rank"]) == list(range(2 + others))
    assert table.loc[["narrow", "very narrow"], [column, "se"]].isna().all(axis=None)
    assert (table.loc[["narrow", "very narrow"], "weight"] == 0).all()
    good = table.index[:-2]
    assert table.loc[good, column].notna().all()
    if others:
        assert table.loc[good, "weight"].sum() == pytest.approx(1, abs=0.02)
        assert table.loc[good[0], "elpd_diff"] == 0


def test_compare_puts_guides_banks_and_chains_side_by_side():
    model = make_model(prior=BatchNoise(4096))
    given = data()
    idatas = {
        "bank": to_arviz(model, make_bank(model), given, 40),
        "mean field": to_arviz(model, MeanField.from_batch_size(model, 4096), given, 40),
        "chains": to_arviz(
            model,
            Draws(
                0.1 * torch.randn(40, 10),
                torch.exp(0.1 * torch.randn(40, 10)),
                num_chains=2,
                stats={"diverging": torch.zeros(40, dtype=torch.bool)},
            ),
            given,
        ),
    }
    table = compare(idatas)
    assert set(table.index) == set(idatas)
    assert table["corrected"].to_dict() == {"bank": False, "mean field": True, "chains": False}
    assert "has no density" in table["caveat"]["bank"]
    assert "not corrected" not in table["caveat"]["chains"] + table["caveat"]["mean field"]
    column = "elpd_loo" if OLD else "elpd"
    for name, idata in idatas.items():
        assert table[column][name] == pytest.approx(loo(idata).elpd, rel=0.02)  # rounded
    assert list(table["rank"]) == [0, 1, 2]
    assert table["weight"].sum() == pytest.approx(1, abs=0.02)


def test_refusals():
    model = make_model()
    given = data()
    guide = make_guide("MeanField", model)
    whole = to_arviz(model, guide, given, 30)
    with pytest.raises(OptionError, match=r"num_data=50 examples, the export has 20"):
        loo(to_arviz(model, guide, (given[0][:20], given[1][:20]), 30))
    with pytest.raises(OptionError, match="there is no group log_likelihood"):
        loo(to_arviz(model, guide, given[0], 30))
    with pytest.raises(OptionError, match="loo: needs at least 25 draws, got 24"):
        loo(to_arviz(model, guide, given, 24))
    with pytest.raises(OptionError, match="at least two posteriors, got 1"):
        compare({"a": whole})
    other = to_arviz(model, guide, (given[0], (given[1] + 1) % 3), 30)
    with pytest.raises(OptionError, match="the data y of 'b' are not those of 'a'"):
        compare({"a": whole, "b": other})


def test_an_estimate_is_a_line():
    arrays = np.zeros(3)
    estimate = LeaveOneOut(-12.345, 1.5, 2.25, arrays, 0.7, True, "", None)
    assert repr(estimate) == "LeaveOneOut(elpd -12.35 ± 1.50, p 2.25, corrected)"
    estimate = LeaveOneOut(math.nan, math.nan, math.nan, arrays, 0.7, False, "no estimate", None)
    assert repr(estimate) == "LeaveOneOut(elpd nan ± nan, p nan; no estimate)"
