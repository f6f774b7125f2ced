from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm.conversion import convert
from pyronorm.errors import StatisticsError
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import Batch, Group, LatentNorm, trust_statistics
from pyronorm.normalizers.freshness import (
    check_statistics,
    invalidate_statistics,
    stamp_statistics,
)
from pyronorm.normalizers.watch import verified, watch
from tests.nets import SHAPES, conv_net, train_briefly


@pytest.fixture
def trained() -> nn.Module:
    return train_briefly(conv_net(2), SHAPES[2], steps=3)


def change(network: nn.Module) -> None:
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] += 1e-6


def test_statistics_of_a_trained_network_are_current(trained):
    check_statistics(convert(trained))


def test_an_untrained_network_has_none():
    with pytest.raises(
        StatisticsError, match=r"1 has no population statistics.*2 of 2 batch layers"
    ):
        check_statistics(convert(conv_net(2)))
    with pytest.raises(StatisticsError, match="estimate_population_statistics"):
        check_statistics(LatentNorm(Batch(), 3))


def test_a_changed_weight_makes_them_stale(trained):
    network = convert(trained)
    change(network)
    with pytest.raises(StatisticsError, match=r"1: .* stale, 1 of 14 tensors \('0.weight'\)"):
        check_statistics(network)


def test_deepcopy_cast_and_parts_keep_them_current(trained):
    network = convert(trained)
    check_statistics(copy.deepcopy(network))
    check_statistics(copy.deepcopy(network).double())
    check_statistics(network[:4])
    check_statistics(nn.Sequential(nn.Sequential(network)))
    check_statistics(nn.Sequential(nn.Sequential(network))[0])
    with pytest.raises(StatisticsError, match="stale"):
        check_statistics(copy.deepcopy(network).bfloat16())


def test_loading_a_state_dict_brings_its_statistics(trained):
    network = convert(conv_net(2))
    network.load_state_dict(trained.state_dict())
    check_statistics(network)
    change(network)
    with pytest.raises(StatisticsError):
        check_statistics(network)
    network.load_state_dict(conv_net(2).state_dict())
    with pytest.raises(StatisticsError, match="has no population statistics"):
        check_statistics(network)


def test_trust_accepts_them_as_they_are(trained):
    network = convert(trained)
    change(network)
    trust_statistics(network)
    check_statistics(network)
    untrained = convert(conv_net(2))
    trust_statistics(untrained)
    check_statistics(untrained)


def test_invalid_statistics_say_so_in_the_state_dict(trained):
    network = convert(trained)
    invalidate_statistics(network)
    stamp_statistics(network)
    with pytest.raises(StatisticsError, match="has no population statistics"):
        check_statistics(network)
    assert network.state_dict()["1.num_batches_tracked"] == 0


def test_other_normalizers_have_nothing_to_check():
    check_statistics(convert(conv_net(2), Group(2)))
    check_statistics(nn.Linear(2, 2))


CHANGES = {
    "negated": lambda w: w.neg_(),
    "doubled": lambda w: w.mul_(2),
    "fourfold": lambda w: w.mul_(4),
    "zeroed": lambda w: w.zero_(),
    "permuted": lambda w: w.copy_(w.flip(0)),
    "transposed": lambda w: w.copy_(w.transpose(-1, -2).clone()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["0.weight", "3.weight", "1.weight", "1.running_var"])
def test_order_and_sign_of_weights_and_buffers_count(trained, change, name):
    network = convert(trained)
    tensor = network.state_dict()[name]
    if change is CHANGES["transposed"] and tensor.ndim < 2:
        pytest.skip("a vector is its own transpose")
    change(tensor)
    with pytest.raises(StatisticsError, match=f"stale, 1 of 14 tensors .'{name}'."):
        check_statistics(network)


def test_layers_that_change_places_are_noticed():
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(3)]
    trained = train_briefly(nn.Sequential(*blocks, nn.Linear(4, 3)), (4,), steps=3)
    swapped, copied, shortened = (convert(trained) for _ in range(3))
    swapped[0], swapped[2] = swapped[2], swapped[0]
    copied[0].load_state_dict(copied[2].state_dict())
    shortened[1] = nn.Identity()
    for network in (swapped, copied, shortened):
        with pytest.raises(StatisticsError, match="stale"):
            check_statistics(network)


def test_a_file_without_all_tensors_brings_no_statistics(trained):
    other = {k: v for k, v in conv_net(2).state_dict().items() if "0.weight" in k}
    network = convert(trained)
    network.load_state_dict(other, strict=False)
    with pytest.raises(StatisticsError, match="stale, 1 of 14"):
        check_statistics(network)
    whole = nn.ModuleDict({"net": network, "head": nn.Linear(2, 2)})
    state = {f"net.{k}": v for k, v in trained.state_dict().items()}
    whole.load_state_dict(state, strict=False)  # all of the network, the head missing
    check_statistics(network)


def names_of(network: nn.Module) -> list[str]:
    return [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]


def perturb(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of many ways in which a tensor can come to hold other numbers."""

    def number(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    new = tensor.clone()
    flat = new.view(-1)
    index = number(len(flat))
    kind = number(10)
    if kind == 0:
        flat[index] += float(torch.randn((), generator=generator)) * 10.0 ** -number(7)
    elif kind == 1:
        flat[index] = torch.nextafter(flat[index], flat[index] + 1)
    elif kind == 2:
        flat[index] = -flat[index]
    elif kind == 3:
        new.neg_()
    elif kind == 4:
        new.mul_(2.0 ** (number(7) - 3))
    elif kind == 5:
        flat.copy_(flat[torch.randperm(len(flat), generator=generator)])
    elif kind == 6:
        flat.copy_(flat.roll(1 + number(len(flat))))
    elif kind == 7:
        new.zero_()
    elif kind == 8:
        other = number(len(flat))
        flat[index], flat[other] = flat[other].clone(), flat[index].clone()
    else:
        new.copy_(torch.randn(new.shape, generator=generator).abs())
    return new


WRITERS = {
    "in place": lambda t, new: t.copy_(new),
    "data": lambda t, new: t.data.copy_(new),
    "set data": lambda t, new: setattr(t, "data", new),
    "numpy": lambda t, new: t.detach().numpy().__setitem__(..., new.numpy()),
}


def tensor_of(network: nn.Module, name: str) -> torch.Tensor:
    return dict([*network.named_parameters(), *network.named_buffers()])[name]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("call", ["alone", "LatentNetwork"])
def test_any_change_that_changes_an_output_is_refused(trained, call, writer, seed):
    """A property, over random tensors and changes: what is let pass computes the same."""
    generator = torch.Generator().manual_seed(seed)
    network = convert(trained).eval()
    run = LatentNetwork(network).eval() if call == "LatentNetwork" else network
    x = torch.randn(7, *SHAPES[2])
    expected = run(x)
    refused = 0
    for _ in range(15):
        names = names_of(network)
        name = names[int(torch.randint(len(names), (), generator=generator))]
        tensor = tensor_of(network, name)
        before = tensor.detach().clone()
        with torch.no_grad():
            WRITERS[writer](tensor, perturb(before, generator))
        try:
            torch.testing.assert_close(run(x), expected, rtol=0, atol=1e-6)
        except StatisticsError:
            refused += 1
        with torch.no_grad():
            WRITERS[writer](tensor, before)
        assert torch.equal(run(x), expected)
    assert refused


def test_a_network_trained_by_a_plain_loop_is_not_evaluated():
    torch.manual_seed(0)
    network = convert(conv_net(2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    x = torch.randn(7, *SHAPES[2])
    network(x).square().sum().backward()
    optimizer.step()
    with pytest.raises(StatisticsError, match="no population statistics"):
        network.eval()(x)
    pretrained = convert(train_briefly(conv_net(2), SHAPES[2], steps=2))
    pretrained.eval()(x)
    pretrained.train()(x).square().sum().backward()
    torch.optim.SGD(pretrained.parameters(), 0.1).step()
    with pytest.raises(StatisticsError, match="stale"):
        pretrained.eval()(x)
    trust_statistics(pretrained)
    pretrained(x)
    with torch.no_grad():
        invalidate_statistics(pretrained)
    with pytest.raises(StatisticsError, match="no population statistics"):
        pretrained(x)


def test_a_state_dict_saved_with_stale_statistics_says_so(trained):
    network = convert(trained)
    assert network.state_dict()["1.num_batches_tracked"] == 3
    change(network)
    whole = nn.ModuleDict({"net": network})
    assert whole.state_dict()["net.1.num_batches_tracked"] == 0
    assert network[1].num_batches_tracked == 3
    other = convert(conv_net(2))
    other.load_state_dict(network.state_dict())
    with pytest.raises(StatisticsError, match="has no population statistics"):
        other.eval()(torch.randn(7, *SHAPES[2]))


def test_copies_and_pickles_have_watches_of_their_own(trained, tmp_path):
    network = convert(trained).eval()
    x = torch.randn(7, *SHAPES[2])
    network(x)
    torch.save(network, tmp_path / "network.pt")
    for other in (
        copy.deepcopy(network),
        torch.load(tmp_path / "network.pt", weights_only=False),
    ):
        other(x)
        assert watch(other) is not watch(network)
        change(other)
        with pytest.raises(StatisticsError):
            other(x)
    network(x)


def test_replaced_modules_and_tensors_are_noticed(trained):
    x = torch.randn(7, *SHAPES[2])
    for replace in (
        lambda n: n.__setitem__(0, nn.Conv2d(2, 4, 3)),
        lambda n: setattr(n[0], "weight", nn.Parameter(n[0].weight.detach() * 1.1)),
        lambda n: n[1].register_buffer("running_mean", n[1].running_mean + 1),
    ):
        network = convert(trained).eval()
        network(x)
        replace(network)
        with pytest.raises(StatisticsError, match="stale"):
            network(x)


def test_weights_of_function_transforms_are_the_callers_arguments(trained):
    network = convert(trained).eval()
    latent = LatentNetwork(network).eval()
    x = torch.randn(7, *SHAPES[2])
    weights = {k: v.detach() for k, v in network.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(network, weights, (x,)).square().sum()

    found = torch.func.grad(loss)(weights)
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b)
    inner = {f"network.{k}": v for k, v in weights.items()}
    many = {k: torch.stack([v, v]) for k, v in inner.items()}
    both = torch.func.vmap(lambda w: torch.func.functional_call(latent, w, (x,)))(many)
    torch.testing.assert_close(both[1], network(x))
    with pytest.raises(StatisticsError, match="stale"):
        torch.func.functional_call(network, {k: v + 1 for k, v in weights.items()}, (x,))


def test_verified_checks_once(trained):
    network = LatentNetwork(convert(trained)).eval()
    x = torch.randn(7, *SHAPES[2])
    with verified(network.network):
        change(network.network)
        network(x)
    with pytest.raises(StatisticsError), verified(network.network):
        pass
    with pytest.raises(StatisticsError):
        network(x)


def test_inference_tensors_are_read(trained):
    with torch.inference_mode():
        network = copy.deepcopy(convert(trained)).eval()
        x = torch.randn(7, *SHAPES[2])
        network(x)
        network[0].weight.mul_(1.1)
        with pytest.raises(StatisticsError, match="stale"):
            network(x)


def test_reference_statistics_are_checked(trained):
    network = LatentNetwork(convert(conv_net(2)))
    with pytest.raises(StatisticsError, match="no population"):
        network.reference_statistics()
    LatentNetwork(convert(trained)).reference_statistics()
