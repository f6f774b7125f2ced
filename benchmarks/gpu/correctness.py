"""Is it right: everything on the device in float32 against the CPU in float64, with the same draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

import pyronorm as pn
from benchmarks.gpu import end_to_end
from benchmarks.gpu.judging import judged, relative, worst
from benchmarks.gpu.noise import SameNoise
from benchmarks.gpu.objective import Objective
from benchmarks.gpu.run import Part, Settings
from benchmarks.gpu.steps import EagerStep, make_step, mixed
from pyronorm.infer.elbo import default_elbo
from pyronorm.stats import Eigen

_NUM_DATA = 5000

NORMALIZERS: dict[str, pn.normalizers.Normalizer | None] = {
    "batch": None,
    "population": pn.normalizers.Population(),
    "ghost": pn.normalizers.Ghost(16),
    "exclusive": pn.normalizers.Exclusive(),
    "group": pn.normalizers.Group(4),
    "layer": pn.normalizers.Layer(),
    "rms": pn.normalizers.RMS(),
    "instance": pn.normalizers.Instance(),
    "weight": pn.normalizers.Weight(),
    "analytic": pn.normalizers.Analytic(),
    "batch whitening": pn.normalizers.BatchWhitening(4),
    "batch whitening, eigen": pn.normalizers.BatchWhitening(4, Eigen()),
    "group whitening": pn.normalizers.GroupWhitening(4),
    "group whitening, eigen": pn.normalizers.GroupWhitening(4, Eigen()),
}

GUIDES: dict[str, Callable[[pn.NormalizationModel], pn.guides.Guide]] = {
    "point": pn.guides.Point,
    "mean-field": pn.guides.MeanField,
    "paired": pn.guides.Paired,
    "low-rank": partial(pn.guides.LowRank, rank=4),
    "batch noise": partial(pn.guides.BatchNoise, batch_size=32),
    "effective batch size": partial(pn.guides.EffectiveBatchSize, batch_size=32),
    "flow": pn.guides.Flow,
}

PRIORS: dict[str, pn.priors.Prior] = {
    "standard": pn.priors.Standard(),
    "batch noise": pn.priors.BatchNoise(32),
    "hierarchical": pn.priors.HierarchicalBatchNoise(32),
}


def run(part: Part) -> None:
    """All cases."""
    settings = part.settings
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 16, 16), torch.randint(10, (64,))
    base = small_network()
    for _ in range(3):
        base(x)  # statistics of its own
    with full_float32():
        for name, normalizer in NORMALIZERS.items():
            for training in (True, False):
                mode = "training" if training else "evaluation"
                body = partial(network_errors, settings, base, normalizer, x, training)
                part.case(f"network, {name}, {mode}", body, needs=5)
        for guide, make in GUIDES.items():
            for name, prior in PRIORS.items():
                body = partial(elbo_errors, settings, base, make, prior, x, y)
                part.case(f"ELBO, {guide} guide, {name} prior", body, needs=5)
        part.case("captured step", partial(captured_errors, settings, base, x, y), needs=10)
        end_to_end.run(part, base, x, y)


def small_network() -> nn.Sequential:
    """Two normalized convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 in float32, and not in the 19 bits that a GPU would take."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def network_errors(
    settings: Settings,
    base: nn.Module,
    normalizer: pn.normalizers.Normalizer | None,
    x: Tensor,
    training: bool,
) -> dict[str, Any]:
    """Errors of output and gradients at given latents."""
    networks = []
    for place in (torch.empty(0, dtype=torch.float64), torch.empty(0, device=settings.device)):
        network = pn.LatentNetwork.of(pn.convert(base, normalizer, example_input=x)).to(place)
        network.train(training)
        pn.trust_statistics(network.network)
        networks.append(network)
    exact, device = networks
    shift, scale = latents(exact.space.num_channels)
    output, gradients = evaluated(exact, x, shift, scale)
    found, its_gradients = evaluated(device, x, shift, scale)
    half, half_gradients = evaluated(device, x, shift, scale, half=True)
    device.network.to(memory_format=torch.channels_last)
    last, _ = evaluated(device, x.to(memory_format=torch.channels_last), shift, scale)
    errors = {
        "output": relative(found, output),
        "gradient": worst(its_gradients, gradients),
        "bfloat16 output": relative(half, output),
        "bfloat16 gradient": worst(half_gradients, gradients, small=0.01),
        "channels-last output": relative(last, output),
    }
    if not training:
        shifts, scales = latents(exact.space.num_channels, 6)
        with torch.no_grad():
            expected = [exact(x.double(), a, b) for a, b in zip(shifts, scales, strict=True)]
            many = device(
                device.prepare(x), *(v[:, None].to(device.like) for v in (shifts, scales))
            )
        errors["many draws"] = relative(many, torch.stack(expected))
    return judged(errors)


def evaluated(
    network: pn.LatentNetwork, x: Tensor, shift: Tensor, scale: Tensor, *, half: bool = False
) -> tuple[Tensor, list[Tensor | None]]:
    """Output, and the gradients of its mean square in the latents and the weights."""
    x = network.prepare(x)
    given = [value.to(network.like).requires_grad_() for value in (shift, scale)]
    with mixed(x.device) if half else nullcontext():
        output = network(x, *given)
    loss = output.double().square().mean()
    gradients = torch.autograd.grad(loss, [*given, *network.parameters()], allow_unused=True)
    return output.detach(), list(gradients)


def elbo_errors(
    settings: Settings,
    base: nn.Module,
    make: Callable[[pn.NormalizationModel], pn.guides.Guide],
    prior: pn.priors.Prior,
    x: Tensor,
    y: Tensor,
) -> dict[str, Any]:
    """Errors of Pyro's ELBO and of the library's, which the steps use, and of their gradients."""
    network = pn.convert(base, pn.normalizers.Group(4))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), _NUM_DATA, prior).train()
    guide = make(model)
    model.double()
    guide.double()
    exact, gradients = with_gradients(model, guide, x, y, pyro_loss)
    for module in (model, guide):
        module.float().to(settings.device)
    loss, found = with_gradients(model, guide, x, y, pyro_loss)
    pn_loss, pn_found = with_gradients(model, guide, x, y, Objective)
    return judged(
        {
            "loss": relative(loss, exact),
            "gradient": worst(found, gradients),
            "pn loss": relative(pn_loss, exact),
            "pn gradient": worst(pn_found, gradients),
        }
    )


def pyro_loss(model: pn.NormalizationModel, guide: pn.guides.Guide) -> Callable[..., Tensor]:
    """Pyro's ELBO, negative and per example."""
    analytic = isinstance(default_elbo(guide), TraceMeanField_ELBO)
    kind = TraceMeanField_ELBO if analytic else Trace_ELBO
    # With the number of plates, which Pyro would run the model to find, and draw.
    module = ELBOModule(model, guide, kind(max_plate_nesting=2))
    return lambda x, y: module(x, y) / model.num_data


def with_gradients(
    model: pn.NormalizationModel,
    guide: pn.guides.Guide,
    x: Tensor,
    y: Tensor,
    make: Callable[[pn.NormalizationModel, pn.guides.Guide], Callable[..., Tensor]],
) -> tuple[Tensor, list[Tensor | None]]:
    """A loss with the draws of a fixed seed, and its gradients in all parameters."""
    x = model.network.prepare(x)
    with SameNoise(7):
        loss = make(model, guide)(x, y.to(x.device))
    if loss.device != x.device:
        raise RuntimeError(f"the loss is on {loss.device}, the model on {x.device}")
    parameters = [*model.parameters(), *guide.parameters()]
    return loss.detach(), list(torch.autograd.grad(loss, parameters, allow_unused=True))


def captured_errors(settings: Settings, base: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """A captured step does what an eager one does, and draws anew each time it is replayed."""
    x, y = x.to(settings.device), y.to(settings.device)

    def build(make: Callable[[pn.NormalizationModel], pn.guides.Guide]):
        network = pn.convert(base, pn.normalizers.Group(4))
        model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 64)
        model.to(settings.device).train()
        guide = make(model).to(settings.device)
        optimizer = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.05)
        return Objective(model, guide), optimizer

    eager = EagerStep(*build(pn.guides.Point), settings.device)
    step, why = make_step(*build(pn.guides.Point), x, y)
    losses = [(step(x, y).item(), eager(x, y).item()) for _ in range(5)]
    drawing, _ = make_step(*build(pn.guides.MeanField), x, y)
    drawing.optimizer.param_groups[0]["lr"] = 0.0
    different = {drawing(x, y).item() for _ in range(4)}
    found = judged({"loss": max(abs(a - b) / abs(b) for a, b in losses)})
    found["right"] = found["right"] and len(different) == 4 and (step.captured or not settings.cuda)
    return {
        **found,
        "captured": step.captured,
        "why not": why,
        "different draws of 4": len(different),
    }


def latents(channels: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Latents near the neutral ones, in float64."""
    generator = torch.Generator().manual_seed(1)
    shift, log_scale = (
        0.1 * torch.randn(*shape, channels, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    return shift, log_scale.exp()
