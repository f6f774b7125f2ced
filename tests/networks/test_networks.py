"""What all networks have to do: shapes, normalization of choice, dropout, conversion."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.errors import OptionError

from .cases import CASES, check_conversion, group_norm, num_parameters

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.mark.parametrize("name", CASES)
def test_without_normalization_the_biases_are_back(name: str) -> None:
    make, shape = CASES[name]
    plain, normal = make(norm=None), make()
    assert not any(isinstance(m, NORMS) for m in plain.modules())
    affine = sum(2 * m.num_features for m in normal.modules() if isinstance(m, NORMS))
    layers = [m for m in plain.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    before = [m for m in normal.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert all(m.bias is not None for m in layers)
    biases = sum(len(m.bias) for m, b in zip(layers, before, strict=True) if b.bias is None)
    assert num_parameters(plain) == num_parameters(normal) - affine + biases
    assert plain(torch.randn(5, *shape)).shape == (5, 3)


@pytest.mark.parametrize("name", CASES)
def test_identity_is_no_normalization(name: str) -> None:
    make, _ = CASES[name]
    torch.manual_seed(1)
    first = make(norm=None).state_dict()
    torch.manual_seed(1)
    second = make(norm=nn.Identity).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in CASES if name != "mlp"])
def test_group_normalization(name: str) -> None:
    make, shape = CASES[name]
    network = make(norm=group_norm)
    groups = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    batches = [m for m in make().modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_channels for m in groups] == [m.num_features for m in batches]
    assert network(torch.randn(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("name", CASES)
def test_dropout_only_where_asked_for(name: str) -> None:
    make, shape = CASES[name]
    x = torch.randn(4, *shape)
    network = make(norm=None).train()
    assert torch.equal(network(x), network(x))
    network = make(norm=None, dropout=0.4).train()
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} <= {0.0, 0.4}
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_must_be_a_rate(name: str, dropout: float) -> None:
    with pytest.raises(OptionError, match="dropout must be at least 0 and below 1"):
        CASES[name][0](dropout=dropout)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "normalizer",
    [None, pn.normalizers.Population(), pn.normalizers.Weight(), pn.normalizers.Analytic()],
    ids=["batch", "population", "weight", "analytic"],
)
def test_conversion_keeps_the_function(
    name: str, normalizer: pn.normalizers.Normalizer | None
) -> None:
    only = None
    if isinstance(normalizer, pn.normalizers.Weight) and name == "wide_resnet":
        only = ["*.norm2"]  # the others follow a sum
    check_conversion(name, normalizer, only)


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_reaches_all_parameters(name: str) -> None:
    make, shape = CASES[name]
    network = make()
    network(torch.randn(6, *shape)).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())
