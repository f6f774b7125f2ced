from __future__ import annotations

import arviz as az
import numpy as np
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyronorm as pn
from pyronorm import NormalizationModel, channels, convert, guides, to_arviz
from pyronorm.diagnostics import arviz_export
from pyronorm.errors import DataError, OptionError, StatisticsError
from pyronorm.infer import as_posterior, log_likelihoods
from pyronorm.likelihoods import Categorical, Normal
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.guides.cases import CASES, make_bank, make_guide, make_model
from tests.nets import SHAPES, conv_net, mlp, train_briefly
from tests.priors.laws import pair

OLD = az.__version__.startswith("0.")
# A single chain has no R-hat; ArviZ 0.x logs it, and divides by zero for a constant variable.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning"),
]


def data(n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 5), torch.randint(3, (n,))


def groups(idata) -> set[str]:
    return set(idata.groups()) if OLD else {name.strip("/") for name in idata.groups} - {""}


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(2)
    model = make_model(prior=BatchNoise(16))
    guide = make_guide("MeanField", model)
    x, y = data()
    return model, guide, x, y, to_arviz(model, guide, (x, y), 50, seed=3)


def test_groups_dims_and_coordinates(exported):
    model, _, _, _, idata = exported
    assert groups(idata) == {
        "posterior",
        "prior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "constant_data",
    }
    posterior = idata["posterior"]
    assert set(posterior.data_vars) == {"shift", "scale", "mean", "std"}
    for name in posterior.data_vars:
        assert posterior[name].dims == ("chain", "draw", "channel")
        assert posterior[name].shape == (1, 50, 10)
    assert posterior["channel"].values.tolist() == list(model.space.channel_labels)
    assert idata["constant_data"]["layer"].values.tolist() == list(model.space.channel_layers)
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "example")
    assert idata["posterior_predictive"]["y"].shape == (1, 50, 9)
    assert idata["observed_data"]["y"].dims == ("example",)
    assert idata["constant_data"]["x"].shape == (9, 5)
    assert set(idata["sample_stats"].data_vars) == {"log_prior", "log_q", "lp"}


def test_values(exported):
    model, guide, x, y, idata = exported
    with torch.random.fork_rng():
        torch.manual_seed(3)
        draws = as_posterior(guide, "test").draw(model, 50)
    posterior = idata["posterior"]
    np.testing.assert_array_equal(posterior["shift"].values[0], draws.shift.numpy())
    mean, std = model.network.reference_statistics()
    expected = mean - std * draws.shift
    np.testing.assert_allclose(posterior["mean"].values[0], expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(
        posterior["std"].values[0], (std / draws.scale).detach().numpy(), rtol=1e-5
    )
    log_p = log_likelihoods(model, draws, (x, y))
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], log_p.numpy(), rtol=1e-5)
    prior = pair(model.prior, 10, torch.empty(0))
    log_prior = prior[0].log_prob(draws.shift) + prior[1].log_prob(draws.scale)
    stats = idata["sample_stats"]
    np.testing.assert_allclose(stats["log_prior"].values[0], log_prior.numpy(), rtol=1e-5)
    lp = log_prior + log_p.sum(1) * model.num_data / 9
    np.testing.assert_allclose(stats["lp"].values[0], lp.numpy(), rtol=1e-4)
    np.testing.assert_allclose(stats["log_q"].values[0], draws.log_density.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(idata["observed_data"]["y"].values, y.numpy())
    np.testing.assert_allclose(idata["constant_data"]["reference_mean"].values, mean.numpy())


def test_attributes(exported):
    attributes = exported[-1]["posterior"].attrs
    for key in ("inference_library_version", "pyro_version", "torch_version", "created_at"):
        assert attributes[key]
    assert attributes["inference_library"] == "pyronorm"
    assert attributes["method"] == "MeanField"
    assert attributes["normalizers"] == "Batch"
    assert attributes["prior"] == str(BatchNoise(16))
    assert attributes["likelihood"] == "Categorical"
    assert attributes["num_data"] == 50
    assert attributes["seed"] == 3


def test_a_seed_makes_it_repeatable_and_leaves_the_generator_alone():
    model = make_model()
    guide = make_guide("LowRank", model)
    state = torch.get_rng_state()
    a, b = (to_arviz(model, guide, data(), 5, seed=7)["posterior"]["scale"] for _ in range(2))
    np.testing.assert_array_equal(a.values, b.values)
    torch.random.set_rng_state(state)
    first = torch.randn(3)
    torch.random.set_rng_state(state)
    to_arviz(model, guide, None, 5, seed=7)
    assert torch.equal(first, torch.randn(3))


@pytest.mark.parametrize("case", CASES)
def test_every_guide(case):
    model = make_model(draws=3)
    idata = to_arviz(model, make_guide(case, model), data(), 12)
    stats = idata["sample_stats"]
    assert ("log_q" in stats) == (case not in ("Point", "MAP", "MonteCarloBatchNorm"))
    assert np.isfinite(idata["log_likelihood"]["y"].values).all()
    assert idata["posterior"].attrs["method"] == case.split(".")[0]


def test_bank_rows_in_order():
    model = make_model()
    bank = make_bank(model, rows=30)
    idata = to_arviz(model, bank, data())
    np.testing.assert_allclose(idata["posterior"]["scale"].values[0], bank.scale.numpy())
    np.testing.assert_allclose(
        idata["posterior"]["mean"].values[0], bank.mean.numpy(), rtol=1e-4, atol=1e-5
    )
    assert to_arviz(model, bank, None, 20)["posterior"].sizes["draw"] == 20
    assert idata["posterior"].attrs["method"] == "StatisticsBank"


def test_mcmc_chains():
    model = make_model(prior=Standard(0.3, 0.3)).eval()
    model.requires_grad_(False)
    x, y = data(20)
    mcmc = MCMC(NUTS(model, max_tree_depth=4), num_samples=12, warmup_steps=8, disable_progbar=True)
    mcmc.run(x, y)
    idata = to_arviz(model, mcmc, (x, y))
    samples = mcmc.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(idata["posterior"]["shift"].values, samples["shift"].numpy())
    assert idata["sample_stats"]["diverging"].dtype == bool
    assert int(idata["sample_stats"]["diverging"].sum()) == len(
        mcmc.diagnostics()["divergences"]["chain 0"]
    )
    assert "log_q" not in idata["sample_stats"]
    assert idata["posterior"].attrs["method"] == "MCMC"


def test_several_chains_stay_apart(monkeypatch):
    model = make_model().eval()
    c = model.space.num_channels
    samples = {"shift": torch.randn(3, 5, c), "scale": torch.rand(3, 5, c) + 0.5}
    mcmc = MCMC(NUTS(model), num_samples=5, num_chains=1, disable_progbar=True)
    monkeypatch.setattr(mcmc, "get_samples", lambda group_by_chain: samples)
    divergences = {"chain 0": [], "chain 1": [0, 4], "chain 2": [2]}
    monkeypatch.setattr(mcmc, "diagnostics", lambda: {"divergences": divergences})
    x, y = data()
    idata = to_arviz(model, mcmc, (x, y))
    np.testing.assert_array_equal(idata["posterior"]["scale"].values, samples["scale"].numpy())
    diverging = idata["sample_stats"]["diverging"].values
    assert np.argwhere(diverging).tolist() == [[1, 0], [1, 4], [2, 2]]
    logits = model.network(x, samples["shift"][2, 3], samples["scale"][2, 3])
    expected = -nn.functional.cross_entropy(logits, y, reduction="none")
    np.testing.assert_allclose(
        idata["log_likelihood"]["y"].values[2, 3], expected.detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_autoguide():
    model = make_model()
    guide = AutoNormal(model)
    guide(*data())
    assert to_arviz(model, guide, data(), 5)["posterior"].attrs["method"] == "AutoNormal"


def test_without_data_and_with_inputs_alone():
    model = make_model()
    guide = make_guide("MeanField", model)
    assert groups(to_arviz(model, guide, None, 5)) == {
        "posterior",
        "prior",
        "sample_stats",
        "constant_data",
    }
    alone = to_arviz(model, guide, data()[0], 5, include_inputs=False)
    assert "posterior_predictive" in groups(alone)
    assert "observed_data" not in groups(alone)
    assert "x" not in alone["constant_data"]


def test_improper_prior_has_no_prior_group():
    model = make_model(prior=ScaleInvariant())
    idata = to_arviz(model, make_guide("MeanField", model), data(), 5)
    assert "prior" not in groups(idata)
    scale = idata["posterior"]["scale"].values
    np.testing.assert_allclose(
        idata["sample_stats"]["log_prior"].values, -np.log(scale).sum(-1), rtol=1e-4, atol=1e-5
    )


def test_normalizers_without_reference_statistics_have_no_implied_ones():
    model = make_model(network=mlp(norm=lambda c: nn.GroupNorm(2, c)))
    idata = to_arviz(model, make_guide("MeanField", model), None, 5)
    assert set(idata["posterior"].data_vars) == {"shift", "scale"}


def test_dense_outputs():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1))
    for likelihood, y in (
        (Categorical(), torch.randint(3, (6, 4, 5))),
        (Normal(), torch.randn(6, 3, 4, 5)),
    ):
        model = NormalizationModel(convert(network), likelihood, 10)
        idata = to_arviz(model, make_guide("MeanField", model), (torch.randn(6, 2, 4, 5), y), 30)
        assert idata["posterior_predictive"]["y"].shape == (1, 30, *y.shape)
        assert idata["log_likelihood"]["y"].shape == (1, 30, 6)
        assert idata["observed_data"]["y"].shape == y.shape
        az.loo(idata)


def test_arviz_functions_work_on_it(exported):
    model, _, x, y, idata = exported
    coords = channels(idata, layer="4")
    summary = az.summary(idata, var_names=["scale"], coords=coords)
    assert list(summary.index) == [f"scale[4[{c}]]" for c in range(4)]
    assert 15 < float(az.ess(idata, var_names=["shift"])["shift"].mean()) < 120
    loo = az.loo(idata, pointwise=True)
    assert np.isfinite(loo.elpd_loo if OLD else loo.elpd)
    other = to_arviz(model, make_bank(model), (x, y))
    ranking = az.compare({"mean-field": idata, "bank": other})
    assert set(ranking.index) == {"mean-field", "bank"}


def test_arviz_plots_work_on_it(exported):
    idata = exported[-1]
    import matplotlib.pyplot as plt

    az.plot_forest(idata, var_names=["scale"], coords=channels(idata, layer="1"))
    trace = az.plot_trace if OLD else az.plot_trace_dist
    trace(idata, var_names=["shift"], coords={"channel": ["1[0]", "1[1]"]})
    az.plot_trace(idata, var_names=["shift"], coords={"channel": ["1[0]"]})
    plt.close("all")


def test_netcdf_round_trip(tmp_path, exported):
    idata = exported[-1]
    path = str(tmp_path / "posterior.nc")
    idata.to_netcdf(path)
    back = az.from_netcdf(path)
    assert groups(back) == groups(idata)
    for group in groups(idata):
        for name, variable in idata[group].data_vars.items():
            np.testing.assert_array_equal(back[group][name].values, variable.values)
    assert back["constant_data"]["layer"].values.tolist() == ["1"] * 6 + ["4"] * 4
    assert back["posterior"].attrs["method"] == "MeanField"
    assert channels(back, "1") == channels(idata, "1")


def test_channels_of_layers(exported):
    idata = exported[-1]
    assert channels(idata, layer="1") == {"channel": [f"1[{c}]" for c in range(6)]}
    assert channels(idata, layer=["4", "1"])["channel"][0] == "1[0]"
    assert len(channels(idata, layer=["4", "1"])["channel"]) == 10
    with pytest.raises(OptionError, match=r"no layer 'bn1'; there are \['1', '4'\]"):
        channels(idata, layer="bn1")


def test_errors():
    model = make_model()
    guide = make_guide("MeanField", model)
    with pytest.raises(OptionError, match="num_samples must be at least 1"):
        to_arviz(model, guide, None, 0)
    stale = NormalizationModel(
        convert(train_briefly(conv_net(2), SHAPES[2], steps=1)), Categorical(), 10
    )
    with torch.no_grad():
        stale.network.network[0].weight.mul_(1.1)
    with pytest.raises(StatisticsError, match="stale"):
        to_arviz(
            stale, guides.MeanField(stale), (torch.randn(3, *SHAPES[2]), torch.zeros(3).long()), 5
        )


def test_what_is_drawn_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model = make_model()
    guide = guides.MeanField(model)
    x, y = data(40)
    first, *others = (
        to_arviz(model, guide, (x, y), 6, batch_size=size, seed=0) for size in (256, 1, 7)
    )
    for other in others:
        for group in ("posterior", "prior", "posterior_predictive", "log_likelihood"):
            for name, value in first[group].data_vars.items():
                np.testing.assert_allclose(other[group][name].values, value.values, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 2**25])
def test_blocks_of_outputs_do_not_depend_on_the_batches(monkeypatch, limit):
    monkeypatch.setattr(arviz_export, "_ELEMENTS", limit * 6)
    whole = torch.randn(2, 700, 3)
    found = [list(arviz_export._blocks(whole.split(rows, 1))) for rows in (700, 1, 300)]
    for blocks in found:
        assert [b.shape for b in blocks] == [b.shape for b in found[0]]
        assert torch.equal(torch.cat(blocks, 1), whole)


def test_data_frames_and_json(tmp_path, exported):
    idata = exported[-1]
    if OLD:
        frame = idata.to_dataframe()
        column = frame[("posterior", "scale[3]", "1[3]")].to_numpy()
        np.testing.assert_array_equal(column, idata["posterior"]["scale"].values[0, :, 3])
        idata.to_json(str(tmp_path / "posterior.json"))
        back = az.from_json(str(tmp_path / "posterior.json"))
        np.testing.assert_allclose(back["posterior"]["shift"], idata["posterior"]["shift"])
        assert channels(back, "4") == channels(idata, "4")
    frame = idata["posterior"]["scale"].to_dataframe()
    assert len(frame) == 500


def test_bfloat16_networks_and_data():
    model = make_model()
    model.network.to(torch.bfloat16)
    pn.trust_statistics(model.network)
    x, y = data()
    idata = to_arviz(model, make_guide("MeanField", model), (x.bfloat16(), y), 4)
    assert idata["posterior"]["mean"].values.dtype == np.float32
    assert idata["constant_data"]["x"].values.dtype == np.float32


def test_labels_of_the_users(exported):
    model, guide, x, y, _ = exported
    names = [f"patient {i}" for i in range(9)]
    idata = to_arviz(
        model,
        guide,
        (x, y),
        4,
        coords={"patient": names, "blood": list("abcde")},
        dims={"y": ["patient"], "x": ["patient", "blood"]},
    )
    assert idata["observed_data"]["y"].sel(patient="patient 3") == y[3]
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "patient")
    value = idata["constant_data"]["x"].sel(patient="patient 2", blood="d")
    assert float(value) == float(x[2, 3])
    for wrong, message in (
        ({"coords": {"patient": names}}, "coords names the dimension 'patient'"),
        ({"coords": {"example": names[:3]}}, "3 labels for 'example', which has 9"),
        ({"dims": {"z": ["a"]}}, "dims names the variable 'z'"),
        ({"dims": {"x": ["a"]}}, r"must name the 2 axes of 'x'"),
        ({"dims": {"x": ["channel", "b"]}}, "the dimension 'channel' has 10 entries .* and 9"),
    ):
        with pytest.raises(OptionError, match=message):
            to_arviz(model, guide, (x, y), 4, **wrong)


def test_prior_predictive(exported):
    model, guide, x, y, _ = exported
    idata = to_arviz(model, guide, (x, y), 40, prior_predictive=True, seed=1)
    drawn = torch.from_numpy(idata["prior_predictive"]["y"].values[0])
    assert drawn.shape == (40, 9)
    prior = idata["prior"]
    shift, scale = (torch.from_numpy(prior[name].values[0]) for name in ("shift", "scale"))
    prediction = pn.predict(model, pn.Draws(shift, scale), x)
    shares = nn.functional.one_hot(drawn, 3).double().mean(0)
    # 40 draws of one category each: standard errors of at most .08
    assert (shares - prediction.mean).abs().max() < 0.32
    with pytest.raises(DataError, match="prior_predictive needs data"):
        to_arviz(model, guide, None, 4, prior_predictive=True)
    improper = make_model(prior=ScaleInvariant())
    with pytest.raises(OptionError, match="ScaleInvariant is improper"):
        to_arviz(improper, make_guide("Point", improper), (x, y), 4, prior_predictive=True)


def test_targets_with_an_axis_of_length_one():
    network = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    model = NormalizationModel(convert(network), pn.likelihoods.Normal(), 9)
    x = torch.randn(9, 5)
    idata = to_arviz(model, guides.MeanField(model), (x, x[:, :1]), 40, seed=0)
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "example", "y_dim_0")
    values = az.loo_pit(idata, y="y") if OLD else az.loo_pit(idata, var_names="y")["y"].values
    assert values.shape == (9, 1)
    assert ((values >= 0) & (values <= 1)).all()


def test_what_nuts_knows_of_each_draw():
    model = make_model(network=nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    x, y = data()
    model = NormalizationModel(model.network, Categorical(), 9)
    draws = pn.run_nuts(model, (x, y), 12, 10, 2, max_tree_depth=3, seed=0, progress=False)
    idata = to_arviz(model, draws, (x, y))
    stats = idata["sample_stats"]
    assert stats["energy"].shape == (2, 12)
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert set(np.unique(stats["tree_depth"])) <= {0, 1, 2, 3}
    # potential energy before a step is that of the draw before it; the rest is kinetic
    jacobian = np.log(idata["posterior"]["scale"].values).sum(-1)
    potential = -(stats["lp"].values + jacobian)
    kinetic = stats["energy"].values[:, 1:] - potential[:, :-1]
    assert (kinetic > -1e-3).all()
    # half a chi-squared variable with 8 degrees of freedom; 22 of them
    assert 2 < kinetic.mean() < 7
    found = az.bfmi(idata) if OLD else az.bfmi(idata)["energy"].values
    assert (np.asarray(found) > 0).all()
