"""Arrays of NumPy where tensors are expected, against the tensors themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import pyronorm as pn
from pyronorm.arrays import as_tensors, to_tensor
from pyronorm.errors import DataError


@dataclasses.dataclass
class Record:
    image: object
    age: object


@pytest.fixture
def model() -> pn.NormalizationModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    return pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), num_data=60)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(60, 3), torch.randint(0, 2, (60,))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3)[::-1],
        np.arange(6.0).astype(">f4"),
        np.array([1, 60000], dtype=np.uint16),
        np.array([1, 2], dtype=np.uint8),
        np.array([True, False]),
        np.float32([1, 2])[::2],
        np.zeros((0, 3)),
        np.broadcast_to(np.float32(2), (4, 3)),
    ],
)
def test_arrays_become_tensors_of_the_same_numbers(array: np.ndarray) -> None:
    assert to_tensor(array).tolist() == array.tolist()


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array([None])])
def test_arrays_of_anything_else_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="real numbers"):
        to_tensor(array)


def test_structures_keep_their_form_and_what_has_no_arrays_stays_itself() -> None:
    one = np.ones(2)
    found = as_tensors([({"a": one}, (one, [one])), Record(one, 3)])
    assert isinstance(found[0][0]["a"], torch.Tensor)
    assert isinstance(found[0][1][1][0], torch.Tensor)
    assert isinstance(found[1].image, torch.Tensor)
    assert found[1].age == 3
    plain = [(torch.ones(1), "x")]
    assert as_tensors(plain) is plain
    packed = pack_sequence([torch.ones(3), torch.ones(2)])  # a tuple with names
    assert as_tensors(packed) is packed
    named = {"a": torch.ones(1), "b": (torch.ones(1), None)}
    assert as_tensors(named) is named


def test_integers_that_do_not_fit_are_refused() -> None:
    assert to_tensor(np.array([1, 2**62], np.uint64)).tolist() == [1, 2**62]
    with pytest.raises(
        DataError, match=r"has 9223372036854775808, which is above what int64 holds"
    ):
        to_tensor(np.array([1, 2**63], np.uint64))


def test_arrays_do_for_tensors_from_statistics_to_metrics(model: pn.NormalizationModel) -> None:
    x, y = pairs()
    wide = (x.numpy().astype(np.float64), y.numpy())  # as tables have them
    pn.estimate_population_statistics(model, wide)
    bank = pn.collect_bank(model, wide[0], 4, 15, seed=0)
    assert torch.equal(bank.mean, pn.collect_bank(model, x, 4, 15, seed=0).mean)
    guide = pn.guides.MeanField(model)
    validation = pn.Validation(wide)
    pn.fit(model, guide, wide, epochs=1, validation=validation, seed=0, progress=False)
    assert pn.evaluate(model, guide, wide, seed=0) == pn.evaluate(model, guide, (x, y), seed=0)
    assert pn.evaluate(model, guide, [wide, wide], seed=0)["nll"] > 0
    prediction = pn.predict(model, guide, wide[0], seed=0)
    assert torch.equal(prediction.mean, pn.predict(model, guide, x, seed=0).mean)
    assert prediction.nll(wide[1]) == prediction.nll(y)
    assert prediction.metrics(wide[1]) == prediction.metrics(y)
    assert torch.equal(prediction.log_prob(wide[1]), prediction.log_prob(y))
    assert repr(pn.calibrate(model, wide)) == repr(pn.calibrate(model, (x, y)))
    assert pn.diagnostics.fit_temperature(prediction, wide[1]) > 0
    idata = pn.to_arviz(model, guide, wide, 10, seed=0)
    assert idata["observed_data"]["y"].values.tolist() == y.tolist()


def test_arrays_of_real_targets_in_double_precision(model: pn.NormalizationModel) -> None:
    x, y = pairs()
    real = pn.NormalizationModel(model.network, pn.likelihoods.Normal(), num_data=60)
    targets = np.stack([y.double().numpy()] * 2, axis=1)
    guide = pn.guides.MeanField(real)
    pn.fit(real, guide, (x.numpy(), targets), epochs=1, seed=0, progress=False)
    assert pn.evaluate(real, guide, (x.numpy(), targets))["rmse"] > 0


def test_arrays_of_texts_are_refused_where_data_are_expected(model: pn.NormalizationModel) -> None:
    pn.estimate_population_statistics(model, pairs()[0])
    with pytest.raises(DataError, match="real numbers"):
        pn.predict(model, pn.guides.Point(model), np.array([["a", "b", "c"]]))
