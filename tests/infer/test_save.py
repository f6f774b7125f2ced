"""What was saved predicts the same in another process, or is refused by name."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pyronorm as pn
import pyronorm.archive
from pyronorm.errors import (
    ConversionError,
    FileError,
    OptionError,
    ShapeError,
    StatisticsError,
)
from pyronorm.infer.save import _plain_network
from pyronorm.likelihoods import Likelihood, per_example
from pyronorm.normalizers import Layer
from tests.infer.saved_cases import (
    NORMALIZERS,
    bank,
    diagonal,
    everything,
    make,
    make_network,
    outcome,
)


def in_another_process(folder: Path, cases) -> None:
    """Save all cases, load them in a fresh process, compare bit by bit."""
    torch.manual_seed(0)
    x = torch.randn(7, 2, 5, 5)
    save_file({"x": x}, folder / "x.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {}
        for case in cases:
            model, posterior = make(*case)
            pn.save(folder / f"{','.join(case)}.model", model, posterior)
            expected[case] = outcome(model, posterior, x)
    finally:
        torch.set_num_threads(threads)
    script = [sys.executable, "-m", "tests.infer.saved_cases", str(folder)]
    run = subprocess.run(script, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    for case, values in expected.items():
        found = load_file(folder / f"{','.join(case)}.found")
        assert found.keys() == values.keys()
        for name, value in values.items():
            assert torch.equal(found[name], value), (case, name)


def test_every_kind_in_another_process(tmp_path):
    in_another_process(tmp_path, diagonal())


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_whole_grid_in_another_process(tmp_path, normalizer):
    in_another_process(tmp_path, [case for case in everything() if case[0] == normalizer])


def test_what_belongs_to_the_model_comes_back(tmp_path):
    model, guide = make("own", "Normal.learned", "LowRank", "Hierarchical")
    network = pn.LatentNetwork(model.network.network, prefix="body.", samples_per_call=2)
    model = pn.NormalizationModel(network, model.likelihood, 77, model.prior, draws=1)
    guide = pn.guides.LowRank(model, rank=2)
    pn.save(str(tmp_path / "m"), model, guide)
    given = make_network(2)
    before = {k: v.clone() for k, v in given.state_dict().items()}
    loaded, found = pn.load(tmp_path / "m", given)
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())
    assert (loaded.num_data, loaded.draws, loaded.prior) == (77, 1, model.prior)
    assert (loaded.network.space, loaded.network.samples_per_call) == (network.space, 2)
    assert loaded.network.space.prefix == "body."
    assert not loaded.training
    assert torch.equal(loaded.likelihood.std, model.likelihood.std)
    assert isinstance(loaded.likelihood.log_std, nn.Parameter)
    assert found.hyper is not None
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in guide.state_dict().items())
    # training goes on from there
    loaded.train()
    x, y = torch.randn(20, 2, 5, 5), torch.randn(20, 2)
    pn.fit(loaded, found, (x, y), 1, progress=False) if loaded.num_data == 20 else None


def test_statistics_that_were_stale_stay_refused(tmp_path):
    model, guide = make("own", "Categorical", "MeanField")
    draws = guide.draw(model, 4)
    with torch.no_grad():
        model.network.network[0].weight.mul_(1.5)
    for posterior, problem in (
        (dataclasses.replace(draws, weights=0), "estimate_population_statistics"),
        (draws, "Draws: they belong to other weights"),
        (guide, "the guide belongs to other weights"),
    ):
        pn.save(tmp_path / "m", model, posterior)
        loaded, found = pn.load(tmp_path / "m", make_network(3))
        with pytest.raises(StatisticsError, match=problem):
            pn.predict(loaded, found, torch.randn(3, 2, 5, 5))


def test_doubles_and_half_precision(tmp_path):
    for dtype in (torch.float64, torch.bfloat16):
        model, _ = make("own", "Categorical", "none")
        model.network.to(dtype)
        pn.trust_statistics(model.network)
        guide = pn.guides.MeanField(model)
        x = torch.randn(3, 2, 5, 5)
        pn.save(tmp_path / "m", model, guide)
        loaded, found = pn.load(tmp_path / "m", lambda: make_network(3))
        assert loaded.network.network[0].weight.dtype == dtype
        expected = pn.predict(model, guide, x, 4, seed=1).mean
        assert torch.equal(pn.predict(loaded, found, x, 4, seed=1).mean, expected)


def test_a_network_without_normalization(tmp_path):
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    plain = pn.LatentNetwork(network, plain=True)
    model = pn.NormalizationModel(plain, pn.likelihoods.Normal(0.3), 20).eval()
    pn.save(tmp_path / "m", model, pn.guides.Point(model))
    other = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    loaded, guide = pn.load(tmp_path / "m", other)
    x = torch.randn(5, 3)
    assert torch.equal(pn.predict(loaded, guide, x, 1).mean, network(x).detach())


def test_networks_converted_twice_and_in_part(tmp_path):
    network = pn.convert(make_network(3), Layer(), only=["1"])
    network = pn.convert(network, pn.normalizers.Group(3), only="4")
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 20).eval()
    guide = pn.guides.MeanField(model)
    pn.save(tmp_path / "m", model, guide)
    loaded, found = pn.load(tmp_path / "m", make_network(3))
    assert [x.normalizer for x in loaded.space.layers] == ["Layer", "Group"]
    x = torch.randn(5, 2, 5, 5)
    expected = pn.predict(model, guide, x, 3, seed=1).mean
    assert torch.equal(pn.predict(loaded, found, x, 3, seed=1).mean, expected)
    # a network that comes converted is taken as it is
    again, _ = pn.load(tmp_path / "m", network)
    assert torch.equal(pn.predict(again, found, x, 3, seed=1).mean, expected)


class Laplace(Likelihood):
    """A likelihood of one's own, known to the process that loads."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def distribution(self, output, num_sample_dims=0):
        return per_example(torch_laplace(output, self.scale), num_sample_dims)


def torch_laplace(output, scale):
    import pyro.distributions as dist

    return dist.Laplace(output, scale)


@dataclass(frozen=True)
class Wide(pn.priors.Standard):
    """A prior of one's own."""


class Own(pn.guides.MeanField):
    """A guide of one's own."""


def test_classes_of_ones_own(tmp_path):
    network = pn.convert(make_network(2), pn.normalizers.Group(2))
    model = pn.NormalizationModel(network, Laplace(0.7), 20, Wide(0.5, 0.5)).eval()
    pn.save(tmp_path / "m", model, Own(model, 0.2))
    loaded, guide = pn.load(tmp_path / "m", make_network(2))
    assert isinstance(loaded.likelihood, Laplace)
    assert loaded.likelihood.scale == 0.7
    assert isinstance(loaded.prior, Wide)
    assert isinstance(guide, Own)
    # in a process without them
    script = (
        "import pyronorm as pn; from tests.infer.saved_cases import make_network;"
        f"pn.load({str(tmp_path / 'm')!r}, make_network(2))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "needs the class Laplace of the module tests.infer.test_save" in run.stderr
    assert "Import the module tests.infer.test_save first" in run.stderr


def test_a_likelihood_that_is_a_function_is_given_again(tmp_path):
    import pyro.distributions as dist

    likelihood = Likelihood.of(lambda output: dist.Laplace(output, 0.5))
    network = pn.convert(make_network(2), pn.normalizers.Group(2))
    model = pn.NormalizationModel(network, likelihood, 20).eval()
    guide = pn.guides.MeanField(model)
    pn.save(tmp_path / "m", model, guide)
    with pytest.raises(OptionError, match=r"Give the same one: load\(path, network, likelihood"):
        pn.load(tmp_path / "m", make_network(2))
    loaded, found = pn.load(tmp_path / "m", make_network(2), likelihood=likelihood)
    x = torch.randn(5, 2, 5, 5)
    expected = pn.predict(model, guide, x, 3, seed=1).mean
    assert torch.equal(pn.predict(loaded, found, x, 3, seed=1).mean, expected)


def test_another_network_is_refused_by_the_layer(tmp_path):
    model, guide = make("own", "Categorical", "MeanField")
    pn.save(tmp_path / "m", model, guide)
    wider = make_network(3)
    wider[4] = nn.BatchNorm2d(5)
    wider[3] = nn.Conv2d(4, 5, 3)
    wider[7] = nn.Linear(45, 3)
    with pytest.raises(FileError, match=r"layer '3' has out_channels=6, this network has 5 there"):
        pn.load(tmp_path / "m", wider)
    with pytest.raises(FileError, match=r"of another network.*'7' has out_features=3, .* 4 there"):
        pn.load(tmp_path / "m", make_network(4))
    with pytest.raises(FileError, match=r"'5' \(Tanh\) is not there in this network"):
        pn.load(tmp_path / "m", make_network(3)[:5])
    other_kind = pn.convert(make_network(3), pn.normalizers.Group(2))
    with pytest.raises(FileError, match=r"lacks '1\.num_batches_tracked'"):
        pn.load(tmp_path / "m", other_kind)
    without = make_network(3)
    without[1] = without[4] = nn.Identity()
    with pytest.raises(ConversionError, match="had the normalization layers '1', '4'"):
        pn.load(tmp_path / "m", without)
    other_eps = make_network(3)
    other_eps[4].eps = 0.1
    with pytest.raises(
        FileError, match=r"'4' with 6 channels and the normalizer Batch\(eps=1e-05\)"
    ):
        pn.load(tmp_path / "m", other_eps)


@pytest.mark.parametrize("network", ["name", None, lambda: "network", "model", "latent"])
def test_what_is_no_network_is_refused(network):
    model, _ = make("Group", "Categorical", "MeanField")
    network = {"model": model, "latent": model.network}.get(network, network)
    with pytest.raises(OptionError, match="as it was before pyronorm.convert, or a function"):
        _plain_network(network)


def test_each_tensor_keeps_its_precision_and_tied_ones_their_tie(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.last.weight = self.first.weight
            self.norm = nn.LayerNorm(4)

        def forward(self, x):
            y = self.norm(self.first(x.to(self.first.weight.dtype)).float())
            return self.last(y.to(self.last.weight.dtype))

    network = pn.convert(Tied())
    network.first.bfloat16()
    model = pn.NormalizationModel(network, pn.likelihoods.Normal(0.5), 20).eval()
    guide = pn.guides.MeanField(model)
    pn.save(tmp_path / "m", model, guide)
    loaded, found = pn.load(tmp_path / "m", Tied)
    assert loaded.network.network.first.weight is loaded.network.network.last.weight
    assert loaded.network.network.first.weight.dtype == torch.bfloat16
    assert loaded.network.network.norm.weight.dtype == torch.float32
    x = torch.randn(5, 4)
    expected = pn.predict(model, guide, x, 3, seed=1).mean
    assert torch.equal(pn.predict(loaded, found, x, 3, seed=1).mean, expected)


def test_buffers_that_no_state_dict_has_come_back(tmp_path):
    class Table(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.register_buffer("table", factor * torch.ones(4), persistent=False)

        def forward(self, x):
            return self.norm(x) * self.table

    model = pn.NormalizationModel(pn.convert(Table(2.0)), pn.likelihoods.Normal(0.5), 20).eval()
    pn.save(tmp_path / "m", model)
    loaded, _ = pn.load(tmp_path / "m", lambda: Table(3.0))
    x = torch.randn(5, 4)
    assert torch.equal(loaded.network(x), model.network(x))


def test_parametrized_layers(tmp_path):
    def build():
        network = make_network(3)
        nn.utils.parametrizations.weight_norm(network[0])
        nn.utils.parametrizations.spectral_norm(network[7])
        return network

    model = pn.NormalizationModel(
        pn.convert(build(), pn.normalizers.Group(2)), pn.likelihoods.Categorical(), 20
    ).eval()
    pn.save(tmp_path / "m", model)
    loaded, _ = pn.load(tmp_path / "m", build)
    x = torch.randn(5, 2, 5, 5)
    assert torch.equal(loaded.network(x), model.network(x))


class Both(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, a, b):
        return self.last(self.norm(self.first(a + b)))


@pytest.mark.parametrize("form", ["tuple", "dictionary"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_examples_of_any_form_and_precision(tmp_path, form, dtype):
    a = torch.randn(6, 3, dtype=dtype)
    example = (a, a) if form == "tuple" else {"a": a, "b": a}
    network = pn.convert(Both().to(dtype), pn.normalizers.Weight(), example_input=example)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 20).eval()
    pn.save(tmp_path / "m", model)
    loaded, _ = pn.load(tmp_path / "m", Both)
    assert torch.equal(loaded.network(example), model.network(example))


def test_an_example_of_ones_own_class_is_refused(tmp_path):
    @dataclass
    class Pair:
        a: torch.Tensor

    class Takes(nn.Sequential):
        def forward(self, pair):
            return super().forward(pair.a)

    network = Takes(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network = pn.convert(network, pn.normalizers.Weight(), example_input=Pair(torch.zeros(2, 3)))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 20)
    with pytest.raises(OptionError, match="example_input that holds a Pair"):
        pn.save(tmp_path / "m", model)


def test_damage_and_later_formats_are_refused(tmp_path, monkeypatch):
    model, guide = make("Group", "Categorical", "MeanField")
    path = tmp_path / "m"
    pn.save(path, model, guide)
    blob = path.read_bytes()
    random.seed(1)
    for place in random.sample(range(len(blob)), 60):
        changed = bytearray(blob)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(bytes(changed))
        with pytest.raises(FileError):
            pn.load(path, make_network(3))
    monkeypatch.setattr(pyronorm.archive, "FORMAT", 2)
    pn.save(path, model, guide)
    monkeypatch.undo()
    with pytest.raises(FileError, match="has the format 2"):
        pn.load(path, make_network(3))


def test_other_posteriors_are_told_what_to_save(tmp_path):
    model, guide = make("Group", "Categorical", "MeanField")
    for posterior, match in (
        (pn.Ensemble([(model, guide)]), "only guides .* Save each of its members"),
        (pn.PyroGuide(lambda: None), r"Save draws of it: .*\.draw\(model, 1000\)"),
        ("guide", "save: expected a posterior, that is"),
        (pn.guides.MeanField, r"the class MeanField. Make one of it first"),
    ):
        with pytest.raises(OptionError, match=match):
            pn.save(tmp_path / "m", model, posterior)
    assert not list(tmp_path.iterdir())


def test_a_posterior_of_another_network_is_refused_when_it_is_saved(tmp_path):
    model, _ = make("own", "Categorical", "none")
    small = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other = pn.NormalizationModel(pn.convert(small), pn.likelihoods.Categorical(), 20)
    pn.trust_statistics(other)
    guide = pn.guides.MeanField(other)
    rows = pn.collect_bank(other, torch.randn(16, 3), batch_size=8)
    for posterior in (guide, rows, guide.draw(other, 4)):
        with pytest.raises(ShapeError):
            pn.save(tmp_path / "m", model, posterior)
    rows = bank(model)
    model.network.layers[0].state("running_mean").add_(1.0)
    with pytest.raises(StatisticsError, match="save: the bank is of other weights"):
        pn.save(tmp_path / "m", model, rows)


def test_classes_inside_of_functions(tmp_path):
    class Hidden(Laplace):
        pass

    class HiddenGuide(Own):
        pass

    network = pn.convert(make_network(2), pn.normalizers.Group(2))
    model = pn.NormalizationModel(network, Hidden(0.7), 20).eval()
    with pytest.raises(OptionError, match="the class HiddenGuide is defined inside of a function"):
        pn.save(tmp_path / "m", model, HiddenGuide(model))
    pn.save(tmp_path / "m", model)
    with pytest.raises(
        OptionError, match=r"the likelihood Hidden cannot be made anew.*likelihood="
    ):
        pn.load(tmp_path / "m", make_network(2))
    loaded, _ = pn.load(tmp_path / "m", make_network(2), likelihood=Hidden(0.7))
    assert loaded.likelihood.scale == 0.7
    with pytest.raises(FileError, match="with the likelihood Hidden, got Normal"):
        pn.load(tmp_path / "m", make_network(2), likelihood=pn.likelihoods.Normal(1.0))


def test_banks_and_draws_have_files_of_their_own(tmp_path):
    model, guide = make("own", "Categorical", "MeanField")
    draws = guide.draw(model, 6)
    draws.save(tmp_path / "d")
    found = pn.Draws.load(tmp_path / "d")
    assert torch.equal(found.log_density, draws.log_density)
    assert torch.equal(found.scale, draws.scale)
    rows = bank(model)
    rows.save(tmp_path / "b")
    again = pn.StatisticsBank.load(tmp_path / "b")
    assert again.space == rows.space
    assert torch.equal(again.mean, rows.mean)
    assert again.batch_size == 16
    with pytest.raises(FileError, match="holds 'bank', expected 'draws'"):
        pn.Draws.load(tmp_path / "b")


def test_nothing_is_pickled(tmp_path, monkeypatch):
    import pickle

    model, guide = make("own", "Categorical", "MeanField")

    def refuse(*arguments, **options):
        raise AssertionError("pickle")

    monkeypatch.setattr(pickle, "dumps", refuse)
    monkeypatch.setattr(pickle, "dump", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    pn.save(tmp_path / "m", model, guide)
    pn.load(tmp_path / "m", make_network(3))
