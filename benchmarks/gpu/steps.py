"""Training steps: eager, or captured in a CUDA graph; of a plain network, or of a model and a guide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import pyronorm as pn
from benchmarks.gpu.objective import Objective

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_WARMUP = 3  # passes before a capture: libraries make their plans and workspaces there

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a batch and the weight of the KL divergence."""


class Step(Protocol):
    """One update on a batch.

    Attributes:
        kl_weight: weight of the KL divergence, a tensor without axes; filled in place.
        captured: whether a CUDA graph is replayed.
    """

    kl_weight: Tensor
    captured: bool

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step; the loss, on the device."""


class EagerStep:
    """A step as everybody writes it."""

    captured = False

    def __init__(self, loss: LossFunction, optimizer: Optimizer, device: torch.device) -> None:
        self.loss, self.optimizer = loss, optimizer
        self.kl_weight = torch.ones((), device=device)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step; the loss, on the device."""
        self.optimizer.zero_grad()
        loss = self.loss(x, y, self.kl_weight)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class CapturedStep:
    """Forward and backward pass in a CUDA graph; the optimizer runs outside, as it is.

    Args:
        loss: of a batch; nothing in it may wait for the device.
        optimizer: of the parameters that it depends on.
        x: a batch, of the size and memory format of all that follow.
        y: its classes.

    Raises:
        RuntimeError: if the loss waits for the device.
    """

    captured = True

    def __init__(self, loss: LossFunction, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
        self._loss, self.optimizer = loss, optimizer
        self.x, self.y = torch.empty_like(x).copy_(x), y.clone()
        self.kl_weight = torch.ones((), device=x.device)
        stream = torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for number in range(_WARMUP):
                self.optimizer.zero_grad()
                # Said before the capture: one that breaks off can spoil what comes after it.
                with waiting_refused() if number else nullcontext():
                    self._run()
        torch.cuda.current_stream(x.device).wait_stream(stream)
        self.optimizer.zero_grad()  # the graph makes gradients of its own, and writes them anew
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.value = self._run()

    def _run(self) -> Tensor:
        loss = self._loss(self.x, self.y, self.kl_weight)
        loss.backward()
        return loss.detach()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step; the loss, overwritten by the next step."""
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        self.optimizer.step()
        return self.value


def make_step(
    loss: LossFunction, optimizer: Optimizer, x: Tensor, y: Tensor
) -> tuple[EagerStep | CapturedStep, str]:
    """A captured step where that goes, else an eager one.

    Returns:
        The step, and why it is not captured; empty where it is.
    """
    if x.device.type != "cuda":
        return EagerStep(loss, optimizer, x.device), "no CUDA"
    try:
        return CapturedStep(loss, optimizer, x, y), ""
    except RuntimeError as error:
        optimizer.zero_grad()
        return EagerStep(loss, optimizer, x.device), " ".join(str(error).split())[:200]


@contextmanager
def waiting_refused():
    """An operation that waits for the device is an error, for the time of the block."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def mixed(device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision with bfloat16."""
    # Weights that are cast once and kept would be kept in a graph as well.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def make_fabric(device: torch.device, precision: str) -> Fabric:
    """What ``pn.fit`` and ``pn.Trainer`` run on."""
    from lightning_fabric import Fabric

    devices = 1 if device.index is None else [device.index]
    return Fabric(accelerator=device.type, devices=devices, precision=precision)


def sgd(*modules: nn.Module) -> Optimizer:
    """SGD over all parameters that are trained."""
    return torch.optim.SGD(parameters(*modules), lr=1e-4, momentum=0.9)


def parameters(*modules: nn.Module) -> list[nn.Parameter]:
    """The parameters of modules that are trained, each once."""
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return list(found.values())


def one_graph(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Compiled as one graph; on a CPU traced and differentiated without code being generated."""
    if device.type == "cuda":
        return torch.compile(function, fullgraph=True)
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def plain_loss(network: nn.Module, device: torch.device, *, compiled: bool = False) -> LossFunction:
    """Cross-entropy of a network that is not converted, under mixed precision."""
    run: Callable[..., Tensor] = one_graph(network, device) if compiled else network

    def loss(x: Tensor, y: Tensor, kl_weight: Tensor) -> Tensor:
        with mixed(device):
            output = run(x)
        return F.cross_entropy(output.float(), y)

    return loss


def elbo_loss(
    model: pn.NormalizationModel,
    guide: pn.guides.Guide,
    device: torch.device,
    *,
    compiled: bool = False,
) -> LossFunction:
    """The negative ELBO per example, with the network alone under mixed precision."""
    network = model.network
    run: Callable[..., Tensor] = network.forward
    if compiled:
        run = one_graph(run, device)

    def call(*args: Any) -> Tensor:
        with mixed(device):
            return run(*args)

    return Objective(model, guide, call)
