"""The simulated device refuses what CUDA refuses, and counts what makes CUDA's host wait."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.simulated_device import DEVICE, DeviceTensor, MixedDevicesError


def there(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE)


class TestPlaces:
    def test_tensors_know_where_they_are_and_keep_their_values(self, simulated):
        x = torch.arange(6.0).view(2, 3)
        moved = x.to(DEVICE)
        assert isinstance(moved, DeviceTensor)
        assert moved.device == DEVICE
        torch.testing.assert_close((moved.T @ moved).cpu(), x.T @ x)

    def test_whatever_is_made_from_them_or_there_is_there(self, simulated):
        x = there(4)
        made = [torch.zeros(3, device=DEVICE), torch.tensor([1.0], device=DEVICE)]
        made += [torch.zeros_like(x), x.new_tensor([1.0, 2.0]), torch.as_tensor(2.0, device=DEVICE)]
        made += [torch.func.vmap(torch.sin)(x), x.sort().indices, x[None], x.detach()]
        assert all(isinstance(y, DeviceTensor) and y.device == DEVICE for y in made)

    def test_in_place_operations_keep_the_object(self, simulated):
        x = there(3)
        assert x.add_(1) is x
        y = there(3)
        assert y.copy_(x) is y
        torch.testing.assert_close(y.cpu(), x.cpu())

    @pytest.mark.parametrize(
        "mixed",
        [
            lambda x: x + torch.ones(3),
            lambda x: torch.cat([x, torch.tensor(1.0).view(1)]),
            lambda x: torch.ones(3)[torch.zeros(2, dtype=torch.long, device=DEVICE)],
            lambda x: torch.ones(3, 3) @ x,
            lambda x: x.index_select(0, torch.tensor([0])),
            lambda x: x.normal_(generator=torch.Generator()),
        ],
    )
    def test_two_places_in_one_operation_are_refused(self, simulated, mixed):
        with pytest.raises(MixedDevicesError):
            mixed(there(3))

    def test_numbers_of_the_host_are_taken(self, simulated):
        assert (there(3) * torch.tensor(2.0)).device == DEVICE

    def test_no_numpy(self, simulated):
        with pytest.raises(TypeError, match="numpy"):
            there(2).numpy()


class TestModules:
    def test_moving_keeps_the_parameters_and_their_gradients(self, simulated):
        layer = nn.Linear(3, 2)
        weight = layer.weight
        layer(torch.ones(1, 3)).sum().backward()
        layer.to(DEVICE)
        assert layer.weight is weight
        assert isinstance(weight, nn.Parameter)
        assert weight.device == weight.grad.device == DEVICE
        optimizer = torch.optim.Adam(layer.parameters())
        optimizer.step()
        layer.cpu()
        assert layer.weight is weight
        assert weight.device.type == "cpu"

    def test_deep_copies_and_state_dicts(self, simulated):
        layer = nn.Linear(3, 2).to(DEVICE)
        other = copy.deepcopy(layer)
        with torch.no_grad():
            layer.weight.zero_()
        assert other.weight.abs().sum() > 0
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer.weight.cpu(), other.weight.cpu())
        assert isinstance(other.weight, nn.Parameter)


@pytest.mark.parametrize(
    ("what", "number"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.ones(2).to(DEVICE), 1),
        (lambda x: torch.ones(2).to(DEVICE, non_blocking=True), 0),
        (lambda x: torch.tensor(1.0, device=DEVICE), 1),
        (lambda x: x[[0, 2]], 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.linalg.cholesky(x.outer(x) + torch.eye(4, device=DEVICE)), 1),
        (lambda x: f"{x.sum():.3f}", 1),
        (lambda x: torch.full((3,), 2.0, device=DEVICE) * 3 + x[:3], 0),
        (lambda x: x[torch.zeros(2, dtype=torch.long, device=DEVICE)], 0),
        (lambda x: torch.where(x > 0, x, 0.0).clamp(min=1).log_softmax(0).sum(), 0),
    ],
)
def test_waits_are_counted(simulated, what, number):
    x = there(4)
    simulated.waits.clear()
    what(x)
    assert simulated.waits.total() == number
