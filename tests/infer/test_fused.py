"""The optimizer's step in one kernel: the same training up to rounding, and only where it can be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import pyronorm as pn
from pyronorm.infer.fused import fuse

FUSED = {
    "SGD": lambda groups: SGD(groups, lr=0.05),
    "SGD, momentum": lambda groups: SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda groups: Adam(groups, lr=0.01, weight_decay=0.1),
    "AdamW": lambda groups: AdamW(groups, lr=0.01, amsgrad=True),
}
LEFT = {
    "not fused": lambda groups: Adam(groups, lr=0.01, fused=False),
    "foreach": lambda groups: SGD(groups, lr=0.01, foreach=True),
    "one parameter at a time": lambda groups: SGD(groups, lr=0.01, foreach=False),
    "a tensor for a rate": lambda groups: SGD(groups, lr=torch.tensor(0.01)),
    "one group of two": lambda groups: SGD([{**groups[0], "foreach": True}, *groups[1:]], lr=0.01),
    "Adagrad": lambda groups: Adagrad(groups, lr=0.01),
    "RMSprop": lambda groups: RMSprop(groups, lr=0.01),
    "a kind of one's own": lambda groups: type("Mine", (Adam,), {})(groups, lr=0.01),
}


def problem(dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).to(dtype)
    x, y = torch.randn(24, 3, 5, 5, dtype=dtype), torch.randint(3, (24,))
    network = pn.convert(plain, example_input=x[:2])
    return pn.NormalizationModel(network, pn.likelihoods.Categorical(), 24), (x, y)


def train(make, model=None, epochs: int = 3):
    fresh, data = problem()
    model = fresh if model is None else model
    guide = pn.guides.MeanField(model)
    found = []

    def kept(groups):
        found.append(make(groups))
        return found[0]

    pn.fit(
        model,
        guide,
        data,
        epochs=epochs,
        batch_size=8,
        seed=1,
        optimization=pn.Optimization(optimizer=kept),
        progress=False,
    )
    return {**dict(model.named_parameters()), **dict(guide.named_parameters())}, found[0]


def is_fused(optimizer) -> list:
    return [group.get("fused") for group in optimizer.param_groups]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", FUSED)
def test_the_same_training(kind, layout):
    ours, optimizer = train(FUSED[kind], problem()[0].to(memory_format=layout))
    assert set(is_fused(optimizer)) == {True}

    def apart(groups):
        chosen = FUSED[kind](groups)
        for group in chosen.param_groups:
            group["foreach"] = False
        return chosen

    theirs, optimizer = train(apart, problem()[0].to(memory_format=layout))
    assert True not in is_fused(optimizer)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", LEFT)
def test_what_somebody_chose_is_left(kind):
    before = is_fused(LEFT[kind]([{"params": [nn.Parameter(torch.ones(2))], "name": "network"}]))
    _, optimizer = train(LEFT[kind], epochs=1)
    assert set(is_fused(optimizer)) == set(before)
    assert True not in before


def made(parameters, gradients, kind=SGD):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return kind(parameters, lr=0.1)


def test_gradients_have_to_lie_as_parameters_do():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2))
    other = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    single = nn.Parameter(torch.randn(4, 3, 1, 1))  # strides of axes of length 1 say nothing
    as_last = torch.randn(4, 3, 1, 1).as_strided((4, 3, 1, 1), (3, 1, 3, 3))
    frozen = nn.Parameter(torch.randn(2), requires_grad=False)  # which may be trained later
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    for parameters, gradients, expected in (
        ([weight], [torch.randn_like(weight)], True),
        ([weight], [other], None),
        ([single], [as_last], True),
        ([weight, single], [torch.randn_like(weight), None], None),
        ([weight, frozen], [torch.randn_like(weight), None], None),
        ([table.weight], [table.weight.grad], None),
        ([nn.Parameter(torch.randn(2) + 1j)], [torch.randn(2) + 0j], None),
    ):
        optimizer = made(parameters, gradients)
        fuse(optimizer)
        assert is_fused(optimizer) == [expected]
        optimizer.step()


@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_options_that_fused_kernels_do_not_have(option):
    optimizer = made([nn.Parameter(torch.ones(2))], [torch.ones(2)], Adam)
    optimizer.param_groups[0][option] = True
    fuse(optimizer)
    assert is_fused(optimizer) == [None]


def test_parameters_may_have_gradients_later():
    first, later = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SGD([first, later], lr=0.1, momentum=0.9)
    for gradient in (None, torch.ones(2)):
        first.grad, later.grad = torch.ones(2), gradient
        fuse(optimizer)
        optimizer.step()
    torch.testing.assert_close(later.detach(), torch.full((2,), 0.9))


def test_an_optimizer_goes_on_as_it_began():
    weight = nn.Parameter(torch.randn(3))
    optimizer = made([weight], [torch.ones(3)], Adam)
    optimizer.step()
    fuse(optimizer)
    assert is_fused(optimizer) == [None]
    fused = made([nn.Parameter(weight.detach().clone())], [torch.ones(3)], Adam)
    fuse(fused)
    fused.step()
    again = made([nn.Parameter(weight.detach().clone())], [torch.ones(3)], Adam)
    again.load_state_dict(copy.deepcopy(fused.state_dict()))
    assert is_fused(again) == [True]
    again.step()


def test_the_default_optimizer_is_fused():
    model, data = problem(torch.float32)
    trainer = pn.Trainer(model, pn.guides.MeanField(model), data, batch_size=8, seed=1)
    trainer.run(1)
    assert set(is_fused(trainer.optimizer)) == {True}
