from __future__ import annotations

import pytest
import scipy.stats
import torch
from pyro import poutine

from pyronorm.errors import OptionError, ShapeError
from pyronorm.guides import PopulationStatistics
from pyronorm.infer import as_posterior
from pyronorm.latents import Per
from tests.guides.cases import make_bank, make_model


@pytest.mark.parametrize("num_values", [4, 25])
def test_density_is_normal_inverse_gamma(num_values):
    """The textbook posterior of (mu, sigma^2), carried to (shift, scale) by its Jacobian."""
    guide = PopulationStatistics(make_model(), num_values).double()
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    shift, scale = (trace.nodes[site]["value"] for site in ("shift", "scale"))
    mean, std = 3.0, 0.7  # of the data
    mu, var = mean - std * shift, (std / scale) ** 2
    log_p = scipy.stats.invgamma((num_values - 1) / 2, scale=num_values * std**2 / 2).logpdf(var)
    log_p = log_p + scipy.stats.norm(mean, (var / num_values).sqrt()).logpdf(mu)
    # d mu = std d shift, d var = 2 std^2 / scale^3 d scale
    log_p = torch.as_tensor(log_p) + torch.log(2 * std**3 / scale**3)
    torch.testing.assert_close(trace.log_prob_sum(), log_p.sum())


def test_it_says_how_far_the_truth_is():
    """With the reference prior the posterior is the law of the truth around the estimates."""
    n = 6
    x = 3 + 0.7 * torch.randn(8000, n, dtype=torch.float64)
    var, mean = torch.var_mean(x, 1, correction=0)
    truth = (mean - 3) / var.sqrt(), var.sqrt() / 0.7
    model = make_model()
    draws = as_posterior(PopulationStatistics(model, n), "test").draw(model, 2000)
    for expected, drawn in zip(truth, (draws.shift, draws.scale), strict=True):
        # false alarms at a rate of 1e-4
        assert scipy.stats.ks_2samp(expected.numpy(), drawn.flatten().numpy()).pvalue > 1e-4
    spread = [torch.stack([s.flatten().abs(), r.flatten()]) for s, r in (truth, draws_of(draws))]
    correlations = [torch.corrcoef(pair)[0, 1].item() for pair in spread]
    assert correlations[0] < -0.2  # a small variance goes with a large shift
    assert correlations[0] == pytest.approx(correlations[1], abs=0.06)  # 5 standard errors


def draws_of(draws):
    return draws.shift.double(), draws.scale.double()


def test_each_channel_has_its_number_and_large_ones_are_exact_in_float32():
    model = make_model()
    numbers = torch.tensor([5.0, 1e6] * 5)
    guide = PopulationStatistics(model, numbers)
    draws = as_posterior(guide, "test").draw(model, 4000)
    std = draws.scale.log().std(0)
    expected = 0.5 * torch.polygamma(1, (numbers - 1) / 2).sqrt()
    # 5 standard errors; the log of a chi-square of few degrees of freedom has heavier tails
    torch.testing.assert_close(std, expected, rtol=0.12, atol=0)
    exact = PopulationStatistics(model, numbers).double()
    values = {"shift": draws.shift[0], "scale": draws.scale[0]}
    traces = []
    for g, dtype in ((guide, torch.float32), (exact, torch.float64)):
        sites = {name: value.to(dtype) for name, value in values.items()}
        traces.append(poutine.trace(poutine.condition(g, sites)).get_trace().log_prob_sum().item())
    assert traces[0] == pytest.approx(traces[1], abs=0.05)
    assert not list(guide.parameters())


@pytest.mark.parametrize("per", list(Per))
def test_from_bank_counts_values_by_the_scatter_of_batches(per):
    model = make_model()
    bank = make_bank(model)
    guide = PopulationStatistics.from_bank(model, bank, num_data=400, per=per)
    size = bank.effective_batch_size(per).estimate[per.groups(bank.space)]
    torch.testing.assert_close(guide.df.double(), size * 400 / 16 - 1, rtol=1e-5, atol=0)


def test_layers_without_batch_statistics_count_as_known():
    model = make_model()
    bank = make_bank(model)
    bank.mean[:, 6:], bank.var[:, 6:] = torch.nan, torch.nan
    values = PopulationStatistics.from_bank(model, bank, 50)()
    assert values["shift"][6:].abs().max() < 0.01
    assert values["shift"][:6].abs().max() > 0.01


def test_errors():
    model = make_model()
    for num_values in (1, float("inf"), torch.tensor([5.0] * 9 + [1.0])):
        with pytest.raises(OptionError, match="num_values must be finite and above 1"):
            PopulationStatistics(model, num_values)
    with pytest.raises(ShapeError, match=r"num_values must be a number or have shape \(10,\)"):
        PopulationStatistics(model, torch.ones(3))
    with pytest.raises(OptionError, match="at least 2 rows, got 1"):
        PopulationStatistics.from_bank(model, make_bank(model, rows=1), 50)
    with pytest.raises(OptionError, match="at least the bank's batch size 16, got 15"):
        PopulationStatistics.from_bank(model, make_bank(model), 15)
