from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyronorm import LatentNetwork
from pyronorm.conversion import convert, data_dependent_start
from pyronorm.errors import ConversionError, OptionError
from pyronorm.normalizers import (
    RMS,
    Analytic,
    Batch,
    Ghost,
    Group,
    Instance,
    LatentNorm,
    Layer,
    Normalizer,
    Population,
    Weight,
    trust_statistics,
)
from tests.nets import SHAPES, ResNet, conv_net, mlp, train_briefly


def latent_layers(network: nn.Module) -> dict[str, LatentNorm]:
    return {n: m for n, m in network.named_modules() if isinstance(m, LatentNorm)}


@pytest.fixture(scope="module")
def trained() -> ResNet:
    torch.manual_seed(1)
    return train_briefly(ResNet(blocks=2), (3, 9, 8)).eval()


def test_trained_resnet_keeps_its_function_keys_and_original(trained):
    before = copy.deepcopy(trained.state_dict())
    x = torch.randn(6, 3, 9, 8)
    expected = trained(x)
    network = convert(trained)
    assert type(network) is ResNet
    assert len(latent_layers(network)) == 15
    assert (network(x) - expected).abs().max() < 1e-5
    # the same keys, loadable both ways
    assert list(network.state_dict()) == list(before)
    fresh = ResNet(blocks=2)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh.eval()(x), expected)
    again = convert(ResNet(blocks=2)).eval()
    again.load_state_dict(before)
    assert (again(x) - expected).abs().max() < 1e-5
    # the original is untouched and shares nothing
    assert all(torch.equal(before[k], v) for k, v in trained.state_dict().items())
    assert not any(isinstance(m, LatentNorm) for m in trained.modules())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert torch.equal(trained(x), expected)


def test_training_mode_equals_the_original(trained):
    x = torch.randn(6, 3, 9, 8)
    original, network = copy.deepcopy(trained).train(), convert(trained).train()
    torch.testing.assert_close(network(x), original(x))


@pytest.mark.parametrize("normalizer", [Population(), Weight()], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_population_and_weight_keep_the_evaluation_function(normalizer, dims):
    original = train_briefly(conv_net(dims), SHAPES[dims]).eval()
    x = torch.randn(5, *SHAPES[dims])
    network = convert(original, normalizer, example_input=x[:2])
    for training in (True, False):
        torch.testing.assert_close(network.train(training)(x), original(x), rtol=1e-4, atol=1e-5)


def test_weight_keeps_the_function_of_a_residual_network(trained):
    x = torch.randn(6, 3, 9, 8)
    network = convert(trained, Weight(), example_input=x)
    assert list(latent_layers(network)) == list(latent_layers(convert(trained)))
    torch.testing.assert_close(network(x), trained(x), rtol=1e-4, atol=1e-5)
    assert all(layer.linear is not None for layer in latent_layers(network).values())
    assert sum(isinstance(m, nn.Identity) for m in network.modules()) == 15


KINDS = [
    (nn.GroupNorm(3, 6, eps=1e-2), (4, 6, 5), Group(3, eps=1e-2)),
    (nn.LayerNorm(6, eps=1e-2), (4, 5, 6), Layer(eps=1e-2)),
    (nn.LayerNorm((6, 5)), (4, 6, 5), Layer(eps=1e-5, normalized_shape=(6, 5))),
    (nn.InstanceNorm1d(6), (4, 6, 5), Instance(eps=1e-5)),
    (nn.InstanceNorm2d(6, affine=True), (4, 6, 5, 3), Instance(eps=1e-5)),
    (nn.InstanceNorm3d(6), (4, 6, 5, 3, 2), Instance(eps=1e-5)),
    (nn.BatchNorm1d(6, affine=False, eps=1e-2), (4, 6), Batch(eps=1e-2)),
    (nn.BatchNorm1d(6), (4, 6, 5), Batch(eps=1e-5)),
    (nn.BatchNorm3d(6), (4, 6, 5, 3, 2), Batch(eps=1e-5)),
    (nn.LayerNorm(6, bias=False), (4, 5, 6), Layer(eps=1e-5)),
    (nn.LayerNorm((6, 5), bias=False), (4, 6, 5), Layer(eps=1e-5, normalized_shape=(6, 5))),
    (nn.RMSNorm(6), (4, 5, 6), RMS()),
    (nn.RMSNorm(6, eps=1e-2), (4, 3, 5, 6), RMS(eps=1e-2)),
    (nn.RMSNorm(6, elementwise_affine=False), (4, 6), RMS()),
]


@pytest.mark.parametrize(("layer", "shape", "normalizer"), KINDS, ids=lambda v: str(v)[:14])
def test_every_layer_keeps_its_own_kind(layer, shape, normalizer):
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(shape) * 2 + 1
    new = convert(layer)  # the network itself is the layer
    assert isinstance(new, LatentNorm)
    assert new.normalizer == normalizer
    assert list(new.state_dict()) == list(layer.state_dict())
    assert new.original == type(layer).__name__
    trust_statistics(new)  # of an untrained layer
    for training in (False, True):  # torch's own moves its averages in training
        torch.testing.assert_close(new.train(training)(x), layer.train(training)(x))


@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(2, c), nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize(
    "normalizer", [Batch(), Group(2), Layer(), Instance(), RMS(), Ghost(2)], ids=str
)
def test_replacing_the_kind_keeps_the_affine_map(norm, normalizer):
    original = conv_net(2, norm)
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    network = convert(original, normalizer)
    for layer, old in ((network[1], original[1]), (network[4], original[4])):
        assert type(layer.normalizer) is type(normalizer)
        assert layer.eps == old.eps
        if old.weight is not None:
            assert torch.equal(layer.weight, old.weight)
            assert torch.equal(layer.bias, old.bias)
    assert network(torch.randn(3, *SHAPES[2])).isfinite().all()


@pytest.mark.parametrize("normalizer", [Layer(), Group(2), Batch()], ids=str)
def test_an_eps_that_torch_leaves_open_stays_open(normalizer):
    new = convert(nn.RMSNorm(6), normalizer)
    assert type(new.normalizer) is type(normalizer)
    assert new.normalizer.eps is None
    assert new.eps == 1e-5


def test_a_given_eps_wins():
    assert convert(conv_net(2), Group(2, eps=0.5))[1].eps == 0.5


def test_only_converts_what_it_names(trained):
    network = convert(trained, only=["bn1", "layers.0.*"])
    assert set(latent_layers(network)) == {"bn1", "layers.0.bn1", "layers.0.bn2"}
    x = torch.randn(6, 3, 9, 8)
    torch.testing.assert_close(network(x), trained(x))
    assert set(latent_layers(convert(trained, only="bn1"))) == {"bn1"}
    with pytest.raises(OptionError, match=r"only='bn9' matches no .* there are 'bn1', 'layers\.0"):
        convert(trained, only=["bn9"])


def test_dtype_device_mode_and_gradient_flags_are_kept():
    original = conv_net(2).double()
    original[1].eval()
    original[4].weight.requires_grad_(False)
    network = convert(original, Weight(), example_input=torch.randn(2, *SHAPES[2]).double())
    assert not network[1].training
    assert network[4].training
    assert not network[4].weight.requires_grad
    assert network[1].start_mean.dtype == torch.float64
    assert "1.linear.bias" not in network.state_dict()  # the normalizer cancels it


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm1d(5)
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        return self.second(self.linear(self.first(x)))


def test_a_layer_registered_twice_stays_one_layer():
    network = convert(Shared())
    assert isinstance(network.first, LatentNorm)
    assert network.first is network.second


@pytest.mark.parametrize("only", ["first", "second"])
def test_a_layer_registered_twice_is_one_by_either_name(only):
    network = convert(Shared(), only=only)
    assert isinstance(network.first, LatentNorm)
    assert network.first is network.second


def test_a_layer_called_twice_has_one_shift_and_scale():
    original = train_briefly(Shared(), (5,), steps=3).eval()
    network = LatentNetwork(convert(original)).eval()
    assert network.space.num_channels == 5
    x, shift, scale = torch.randn(4, 5), torch.randn(5), torch.rand(5) + 0.5
    norm = original.first

    def latent(x):
        x_hat = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        return norm.weight * scale * (x_hat + shift) + norm.bias

    torch.testing.assert_close(network(x), original(x))
    torch.testing.assert_close(network(x, shift, scale), latent(original.linear(latent(x))))


class Tied(nn.Module):
    """Two layers, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(5), nn.LayerNorm(5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_tied_parameters_stay_tied():
    network = convert(Tied())
    assert network.first is not network.second
    assert network.first.weight is network.second.weight
    assert network.first.bias is not network.second.bias


class Containers(nn.Module):
    """Layers in lists and dictionaries, several levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleDict({"norm": nn.BatchNorm1d(5), "act": nn.Tanh()}) for _ in range(2)
        )
        self.head = nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)))

    def forward(self, x):
        for stage in self.stages:
            x = stage["act"](stage["norm"](x))
        return self.head(x)


def test_any_nesting():
    original = train_briefly(Containers(), (5,), steps=3).eval()
    network = convert(original)
    assert list(latent_layers(network)) == ["stages.0.norm", "stages.1.norm", "head.0.1"]
    assert [layer.name for layer in latent_layers(network).values()] == list(latent_layers(network))
    x = torch.randn(4, 5)
    torch.testing.assert_close(network(x), original(x))


@pytest.mark.parametrize("parametrization", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("normalizer", [None, Population(), Weight()], ids=str)
def test_parametrized_convolutions_are_kept(parametrization, normalizer):
    original = conv_net(2)
    for index in (0, 3):
        getattr(nn.utils.parametrizations, parametrization)(original[index])
    original = train_briefly(original, SHAPES[2], steps=3).eval()
    x = torch.randn(4, *SHAPES[2])
    network = convert(original, normalizer, example_input=x)
    torch.testing.assert_close(network(x), original(x), rtol=1e-4, atol=1e-5)
    conv = network[1].linear if isinstance(normalizer, Weight) else network[0]
    assert nn.utils.parametrize.is_parametrized(conv, "weight")
    network.train()(x).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in conv.parametrizations.parameters()
    )
    if normalizer is None:
        assert list(network.state_dict()) == list(original.state_dict())


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.kept = [torch.ones(5, requires_grad=True) * 2]


def test_what_torch_cannot_copy_is_refused():
    with pytest.raises(
        ConversionError, match="Uncopyable cannot be copied .* Only Tensors created"
    ):
        convert(Uncopyable())


class Stray(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.order = [self.norm]

    def forward(self, x):
        return self.order[0](x)


@pytest.mark.parametrize("lazy", [nn.LazyBatchNorm1d(), nn.LazyLinear(5)])
def test_lazy_layers_are_refused_by_name(lazy):
    network = nn.Sequential(lazy, nn.BatchNorm1d(5))
    with pytest.raises(ConversionError, match=rf"'0' \({type(lazy).__name__}\) is lazy: run the"):
        convert(network, only="1")
    network(torch.randn(4, 5))
    assert "1" in latent_layers(convert(network))


def test_references_outside_of_the_module_tree_are_refused():
    with pytest.raises(ConversionError, match=r"Stray\.order refers to a normalization layer"):
        convert(Stray())


def test_nothing_to_convert_is_refused():
    with pytest.raises(ConversionError, match="Sequential has no normalization layer"):
        convert(nn.Sequential(nn.Linear(2, 2)))
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
    with pytest.raises(ConversionError, match="no normalization layer"):
        convert(spectral)


def test_what_is_no_normalizer_is_refused(unchecked):
    for wrong, named in (
        (Batch, "the class Batch"),
        ("batch", "str"),
        (nn.GroupNorm(1, 2), "Group"),
    ):
        with pytest.raises(OptionError, match=f"normalizer must be a Normalizer, .* {named}"):
            convert(mlp(), wrong)


def test_groups_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ConversionError, match="layer '4': Group: num_groups=4 does not divide 6"):
        convert(conv_net(2), Group(4))


def test_population_without_statistics_is_refused():
    with pytest.raises(ConversionError, match=r"'1' \(BatchNorm2d\) has no population statistics"):
        convert(conv_net(2), Population())
    with pytest.raises(ConversionError, match=r"GroupNorm\) has no population statistics"):
        convert(conv_net(2, lambda c: nn.GroupNorm(2, c)), Population())


def test_layer_norm_over_positions_cannot_change_its_kind():
    with pytest.raises(
        ConversionError, match=r"LayerNorm\) normalizes over \(6, 5\) with a weight per position"
    ):
        convert(nn.Sequential(nn.LayerNorm((6, 5))), Group(2))


def test_weight_needs_an_example():
    with pytest.raises(OptionError, match="needs example_input"):
        convert(mlp(), Weight())


def test_example_in_the_docstring_of_convert():
    network = convert(torch.nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    assert repr(network[1]) == "LatentNorm(Batch(eps=1e-05), num_channels=8)"


def test_deepcopy_and_pickle(tmp_path, trained):
    network = convert(trained)
    x = torch.randn(6, 3, 9, 8)
    torch.save(network, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    for twin in (copy.deepcopy(network), loaded):
        assert torch.equal(twin(x), network(x))


def test_a_normalizer_that_is_no_dataclass_is_refused():
    class Own(Normalizer):
        eps = None

        def normalize(self, layer, x, weight, bias):
            return x

    with pytest.raises(
        OptionError, match="the normalizer Own is no dataclass. Make it a frozen one"
    ):
        convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), Own())


def test_an_example_without_tensors_is_refused():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(OptionError, match="example_input must be a tensor, or a tuple"):
        convert(network, Weight(), example_input=[2, 3])


def test_networks_of_several_inputs():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, a, b):
            return self.norm(self.first(a - b))

    a, b = torch.randn(6, 3), torch.randn(6, 3)
    network = Both()
    network(a, b)
    network.eval()
    for example in ((a, b), {"b": b, "a": a}):
        new = convert(network, Weight(), example_input=example).eval()
        torch.testing.assert_close(new(a, b), network(a, b))
        data_dependent_start(new, example)
        out = new(a, b)
        torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
        with pytest.raises(ConversionError, match="from one tensor, but the network takes 2"):
            convert(network, Analytic(), example_input=example)
