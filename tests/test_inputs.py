"""Networks of several inputs and outputs: what a user has goes in as it is."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.inputs import all_finite, map_tensors, num_examples, tensors_of

N = 24


class Body(nn.Module):
    """Image and table to three classes."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.table = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(4 * 9 + 6, 3)

    def forward(self, image, table):
        return self.head(torch.cat([self.image(image), self.table(table)], 1))


@dataclass
class Record:
    image: Tensor
    table: Tensor


class Pair(NamedTuple):
    image: Tensor
    table: Tensor


class OfRecord(Body):
    def forward(self, x):
        return super().forward(x.image, x.table)


class Outputs(NamedTuple):
    hidden: Tensor
    logits: Tensor


class Verbose(Body):
    """Returns a dictionary, as transformers do."""

    kind = dict

    def forward(self, image, table):
        logits = super().forward(image, table)
        if self.kind is dict:
            return {"hidden": logits * 2, "logits": logits, "loss": None}
        return (logits * 2, logits) if self.kind is tuple else Outputs(logits * 2, logits)


image, table = torch.randn(N, 2, 5, 5), torch.randn(N, 5)
y = torch.arange(N) % 3
FORMS = {
    "tuple": (Body, (image, table)),
    "dict": (Body, {"image": image, "table": table}),
    "mapping": (Body, UserDict(image=image, table=table)),
    "dataclass": (OfRecord, Record(image, table)),
    "namedtuple": (OfRecord, Pair(image, table)),
}


def joint(form):
    """The model, its inputs, and the same as a function of one tensor."""
    kind, x = FORMS[form]
    torch.manual_seed(1)
    network = kind()
    model = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), N)
    return model, x


class Single(Body):
    def forward(self, x):
        return super().forward(x[:, :50].unflatten(1, (2, 5, 5)), x[:, 50:])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_does_what_one_tensor_does(form):
    """Training, statistics, bank, prediction, evaluation and export give the same numbers.

    But for the biases before a batch normalization, whose gradients are rounding errors.
    """
    model, x = joint(form)
    torch.manual_seed(1)
    single = pn.NormalizationModel(pn.convert(Single()), pn.likelihoods.Categorical(), N)
    single.load_state_dict(model.state_dict())
    flat = torch.cat([image.flatten(1), table], 1)
    found = []
    for own, inputs in ((model, x), (single, flat)):
        guide = pn.guides.MeanField(own)
        pn.fit(own, guide, (inputs, y), epochs=2, batch_size=8, lr=0.01, seed=3, progress=False)
        bank = pn.collect_bank(own, (inputs, y), batch_size=8, num_batches=3, seed=4)
        prediction = pn.predict(own, guide, (inputs, y), 4, batch_size=5, seed=5)
        metrics = pn.evaluate(own, guide, (inputs, y), 4, seed=5)
        idata = pn.to_arviz(own, guide, (inputs, y), 4, seed=5)
        found.append((guide.shift_loc, bank.shift, prediction.samples, metrics["nll"], idata))
    (a_loc, a_bank, a_samples, a_nll, a), (b_loc, b_bank, b_samples, b_nll, b) = found
    torch.testing.assert_close(a_loc, b_loc, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a_bank, b_bank, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a_samples, b_samples, rtol=1e-3, atol=1e-5)
    assert a_nll == pytest.approx(b_nll, rel=1e-4)
    for group, name in (("log_likelihood", "y"), ("posterior", "std")):
        np.testing.assert_allclose(
            a[group][name].values, b[group][name].values, rtol=1e-3, atol=1e-4
        )
    assert {"x_image", "x_table"} <= set(a["constant_data"]) or form == "tuple"
    assert a["constant_data"]["x_0" if form == "tuple" else "x_image"].shape == image.shape
    assert "x" in b["constant_data"]


def test_loaders_of_pairs_of_tuples_and_of_dictionaries():
    model, _ = joint("tuple")
    guide = pn.guides.Point(model)
    pn.estimate_population_statistics(model, ((image, table), y))

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return (image[i], table[i]), y[i]

    expected = pn.predict(model, guide, ((image, table), y), 1).mean
    loader = DataLoader(Items(), batch_size=7)
    torch.testing.assert_close(pn.predict(model, guide, loader, 1).mean, expected)

    class Named(Items):
        def __getitem__(self, i):
            return {"image": image[i], "table": table[i], "label": y[i]}

    batches = pn.with_target(DataLoader(Named(), batch_size=7), "label")
    assert len(batches) == 4
    torch.testing.assert_close(pn.predict(model, guide, batches, 1).mean, expected)
    pn.fit(model, guide, batches, epochs=1, progress=False)
    assert pn.evaluate(model, guide, batches)["accuracy"] >= 0
    with pytest.raises(
        DataError, match=r"the key or attribute 'labels', got keys \['image', 'table', 'label'\]"
    ):
        pn.predict(model, guide, pn.with_target(DataLoader(Named()), "labels"))
    with pytest.raises(DataError, match="with the key or attribute 'label', got list"):
        pn.predict(model, guide, pn.with_target(DataLoader(TensorDataset(image)), "label"))
    with pytest.raises(DataError, match=r"name it: pyronorm.with_target"):
        pn.fit(model, guide, [((image, table), {"labels": y})], epochs=1, progress=False)


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        (dict, "logits"),
        (tuple, 1),
        (Outputs, "logits"),
        (Outputs, 1),
        (dict, lambda found: found["hidden"] / 2),
    ],
    ids=["dict", "tuple", "field", "position", "function"],
)
def test_outputs_are_selected(kind, output):
    torch.manual_seed(1)
    verbose = Verbose()
    verbose.kind = kind
    network = pn.convert(verbose)
    pn.trust_statistics(network)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), N, output=output)
    plain = Body()
    plain.load_state_dict(verbose.state_dict())
    expected = plain.eval()(image, table).softmax(-1)
    guide = pn.guides.Point(model)
    torch.testing.assert_close(
        pn.predict(model, guide, {"image": image, "table": table}, 1).mean, expected
    )
    pn.fit(model, pn.guides.MeanField(model), ((image, table), y), epochs=1, progress=False)
    latent = pn.LatentNetwork(network, output=output)
    shift, scale = torch.zeros(3, 1, 10), torch.ones(3, 1, 10)
    assert latent((image, table), shift, scale).shape == (3, N, 3)


def test_an_output_that_is_no_tensor_lists_the_choices():
    network = pn.convert(Verbose())
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), N)
    wanted = r"Verbose returns dict; .*Say which: output='hidden', output='logits', in Norm"
    with pytest.raises(OptionError, match=wanted):
        pn.fit(model, pn.guides.MeanField(model), ((image, table), y), epochs=1, progress=False)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), N, output="loss")
    with pytest.raises(OptionError, match=r"and output='loss' is no tensor of it"):
        model((image, table), y)
    with pytest.raises(OptionError, match="Give it to one of them"):
        pn.NormalizationModel(
            pn.LatentNetwork(network, output="hidden"),
            pn.likelihoods.Categorical(),
            N,
            output="logits",
        )


def test_selected_outputs_are_saved(tmp_path):
    network = pn.convert(Verbose())
    pn.estimate_population_statistics(network, {"image": image, "table": table})
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), N, output="logits").eval()
    guide = pn.guides.MeanField(model)
    pn.save(tmp_path / "m", model, guide)
    loaded, found = pn.load(tmp_path / "m", Verbose())
    x = {"image": image, "table": table}
    expected = pn.predict(model, guide, x, 3, seed=1).mean
    assert torch.equal(pn.predict(loaded, found, x, 3, seed=1).mean, expected)
    model.network.output = lambda found: found["logits"]
    with pytest.raises(OptionError, match="chosen by a function"):
        pn.save(tmp_path / "m", model, guide)


def test_bad_inputs_are_named():
    model, _ = joint("tuple")
    guide = pn.guides.Point(model)
    pn.trust_statistics(model)
    with pytest.raises(ShapeError, match=r"examples on axis 0 of every tensor.*'1': \(7, 5\)"):
        pn.predict(model, guide, [((image, table[:7]), y)])
    bad = table.clone()
    bad[3] = torch.nan
    with pytest.raises(DataError, match="batch 1 has inputs that are not finite"):
        pn.predict(model, guide, [((image[:2], table[:2]), y[:2]), ((image, bad), y)])
    with pytest.raises(DataError, match="not finite"):
        pn.fit(model, guide, ((image, bad), y), epochs=1, progress=False)
    with pytest.raises(ShapeError, match="one length"):
        pn.fit(model, guide, ((image, table), y[:5]), epochs=1, progress=False)


def test_trees():
    tree = {"a": (torch.zeros(3), Record(torch.ones(3, 2), torch.ones(3))), "b": [torch.ones(3)]}
    assert list(tensors_of(tree)) == ["a.0", "a.1.image", "a.1.table", "b.0"]
    assert num_examples(tree) == 3
    doubled = map_tensors(lambda t: 2 * t, tree)
    assert isinstance(doubled["a"][1], Record)
    assert doubled["a"][1].image.sum() == 12
    assert isinstance(map_tensors(lambda t: t, Pair(image, table)), Pair)
    with pytest.raises(ShapeError, match="no tensor"):
        num_examples({})


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_inputs_are_finite_if_all_their_values_are(wrong):
    x = torch.full((3, 4), torch.finfo(torch.float32).max)
    good = {"a": x, "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.long)}
    assert bool(all_finite(good))  # though their sum is not
    x[1, 2] = wrong
    assert not bool(all_finite(good))
    assert not bool(all_finite((torch.ones(2), torch.tensor([1.0, -wrong, wrong]))))
