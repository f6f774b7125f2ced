"""Guides' parameters in Pyro's store: every guide that runs is the one that is trained."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.nn import PyroModule

import pyronorm as pn
from pyronorm.errors import OptionError, ShapeError
from pyronorm.guides import Flow, LowRank, MeanField
from pyronorm.priors import HierarchicalBatchNoise
from tests.guides.cases import make_model
from tests.nets import mlp


@pytest.fixture(autouse=True)
def clean_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def train(model, guide, steps=3, engine=None):
    """Take SVI steps; return how far every parameter of the guide moved."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    before = [p.detach().clone() for p in guide.parameters()]
    svi = engine or SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    return [(p - b).abs().max().item() for p, b in zip(guide.parameters(), before, strict=True)]


@pytest.mark.parametrize(
    "make", [MeanField, lambda m: LowRank(m, rank=2), lambda m: Flow(m, num_flows=1)]
)
@pytest.mark.parametrize("prior", [None, HierarchicalBatchNoise(16.0)])
def test_a_second_guide_in_one_process_is_trained_alike(make, prior):
    moves = []
    for _ in range(2):
        torch.manual_seed(3)
        model = make_model(prior=prior)
        moves.append(train(model, make(model)))
        for name in list(pyro.get_param_store()):  # the network's names are guarded apart
            if name.startswith("network"):
                del pyro.get_param_store()[name]
    assert min(moves[0]) > 0
    assert moves[0] == moves[1]


def test_a_compiled_elbo_trains_it():
    """Pyro's jit puts tensors of its own into the store while it traces."""
    model = make_model()
    model.requires_grad_(False)
    guide = MeanField(model)
    elbo = JitTrace_ELBO(ignore_jit_warnings=True)
    engine = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert min(train(model, guide, 3, engine)) > 0


def test_two_guides_that_take_turns_are_both_trained():
    model = make_model()
    model.requires_grad_(False)
    guides = [MeanField(model), MeanField(model)]
    engines = [SVI(model, g, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()) for g in guides]
    for _ in range(3):
        for guide, engine in zip(guides, engines, strict=True):
            assert min(train(model, guide, 1, engine)) > 0
    assert not torch.equal(guides[0].shift_loc, torch.zeros(10))


@pytest.mark.parametrize("as_module", [False, True])
def test_two_guides_in_one_pyro_guide_are_both_trained(as_module):
    networks = [pn.LatentNetwork(pn.convert(mlp(2, 6, 1)), prefix=p) for p in ("a.", "b.")]
    first, second = (MeanField(network) for network in networks)

    def model(x):
        for k, network in enumerate(networks):
            network.requires_grad_(False)
            mean = network(x, *pn.sample_latents(network, pn.priors.Standard()))[:, 0]
            with pyro.plate(f"data{k}", len(x)):
                pyro.sample(f"y{k}", dist.Normal(mean, 1.0), obs=x[:, 0])

    def both(x):
        first()
        second()

    class Both(PyroModule):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            self.first()
            self.second()

    svi = SVI(model, Both() if as_module else both, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(torch.randn(8, 2))
    for guide in (first, second):
        assert all(
            (p - MeanField(networks[0]).get_parameter(n)).abs().min() > 0
            for n, p in guide.named_parameters()
        )
    names = {name for name in pyro.get_param_store() if "shift_loc" in name}
    expected = {"first.shift_loc", "second.shift_loc"}
    assert names == (expected if as_module else {"a.MeanField.shift_loc", "b.MeanField.shift_loc"})


@pytest.mark.parametrize("prior", [None, HierarchicalBatchNoise(16.0)])
@pytest.mark.parametrize("make", [MeanField, lambda m: Flow(m, num_flows=1)])
def test_a_store_from_a_file_is_refused_until_it_is_read(make, prior, tmp_path):
    model = make_model(prior=prior)
    model.requires_grad_(False)
    guide = make(model)
    train(model, guide)
    store = pyro.get_param_store()
    store.save(tmp_path / "store")
    pyro.clear_param_store()
    with torch.serialization.safe_globals([]):
        _load(store, tmp_path / "store")
    other = make(model)
    with pytest.raises(OptionError, match=r"holds '.*', which no guide of this process"):
        other()
    other.read_param_store()
    for (name, a), b in zip(guide.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert min(train(model, other)) > 0
    if make is MeanField:
        _load(store, tmp_path / "store")
        with pytest.raises(ShapeError, match=r"of shape \(10,\), expected \(8,\)"):
            MeanField(pn.LatentNetwork(pn.convert(mlp(2, 4, 1)))).read_param_store()


def _load(store, path):
    """What ``store.load`` does; torch.load's default has become stricter than Pyro expects."""
    store.set_state(torch.load(path, weights_only=False))


def test_fit_trains_a_second_guide():
    for _ in range(2):
        model = make_model()
        guide = MeanField(model)
        x = torch.randn(50, 5)
        pn.fit(model, guide, (x, (x[:, 0] > 0).long()), epochs=1, progress=False)
        assert all(
            (p != q).any()
            for p, q in zip(guide.parameters(), MeanField(model).parameters(), strict=True)
        )
