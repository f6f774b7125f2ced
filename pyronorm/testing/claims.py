"""What the checks are made of: claims that fail with a readable AssertionError."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, TypeVar
from unittest import SkipTest  # pytest skips on it too, and nobody needs pytest to run this

import jaxtyping
import pyro
import torch
from torch import Tensor, nn

from pyronorm.errors import PyronormError
from pyronorm.latents import LatentNetwork
from pyronorm.normalizers import LatentNorm, Normalizer, trust_statistics
from pyronorm.testing.networks import BATCH, CHANNELS, Pure, latents

__all__ = [
    "SkipTest",
    "Snapshot",
    "check",
    "expect",
    "follows_the_definition",
    "has_gradients",
    "is_value",
    "names_the_layer",
    "run_checks",
    "same",
    "without_type_checks",
]

_Suite = TypeVar("_Suite")


def check(method: Callable[[_Suite], None]) -> Callable[[_Suite], None]:
    """Make a method a check: reproducible, and whatever goes wrong is an AssertionError."""

    @wraps(method)
    def run(self: _Suite) -> None:
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(0)
            try:
                method(self)
            except (AssertionError, SkipTest):
                raise
            except Exception as error:
                claim = str(method.__doc__).splitlines()[0]
                what = f"{type(error).__name__}: {error}"
                raise AssertionError(f"{claim} Instead it raised {what}") from error

    return run


def run_checks(suite: object) -> dict[str, str]:
    """Run all checks of a suite, without pytest.

    Args:
        suite: an instance of your suite, such as a :class:`NormalizerConformance`.

    Returns:
        For each check ``"passed"``, or ``"skipped: ..."`` with the reason.

    Raises:
        AssertionError: naming all checks that failed, and why.
    """
    results: dict[str, str] = {}
    failures: list[str] = []
    for name in dir(suite):
        if name.startswith("test_"):
            try:
                getattr(suite, name)()
            except SkipTest as reason:
                results[name] = f"skipped: {reason}"
            except AssertionError as error:
                failures.append(f"{name}: {error}")
            else:
                results[name] = "passed"
    if failures:
        raise AssertionError(
            f"{type(suite).__name__}: {len(failures)} checks failed.\n" + "\n".join(failures)
        )
    return results


def expect(holds: bool, message: str) -> None:
    """Fail with the message unless it holds."""
    if not holds:
        raise AssertionError(message)


def same(actual: Tensor, expected: Tensor, message: str, tolerance: float = 1e-8) -> None:
    """Fail with the message unless two tensors agree, within ``tolerance * (1 + |expected|)``."""
    if actual.shape != expected.shape:
        shapes = f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
        raise AssertionError(f"{message}: {shapes}")
    if actual.dtype != expected.dtype:
        raise AssertionError(f"{message}: {actual.dtype} instead of {expected.dtype}")
    difference = (actual - expected).abs()
    if not bool((difference <= tolerance * (1 + expected.abs())).all()):
        place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        raise AssertionError(
            f"{message}: {actual[place].item():.6g} instead of {expected[place].item():.6g} "
            f"at {place}"
        )


def is_value(kind: object, twin: object) -> None:
    """Fail unless a normalizer is a frozen dataclass of settings, equal to its twin."""
    name = type(kind).__name__
    expect(isinstance(kind, Normalizer), f"make returned a {name}, which is no Normalizer")
    params: Any = getattr(kind, "__dataclass_params__", None)
    frozen = params is not None and params.frozen
    expect(frozen, f"{name} is no frozen dataclass: its settings could change unseen")
    for setting, value in vars(kind).items():
        expect(
            not isinstance(value, (Tensor, nn.Module)),
            f"{name}.{setting} is a {type(value).__name__}, which would not move or be saved with the "
            "network: declare a buffer in buffers()",
        )
    expect(kind == twin, f"{name} differs from one with the same settings")


def follows_the_definition(
    network: LatentNetwork,
    x: Tensor,
    case: str,
    channel_last: bool = False,
    after: Callable[[Tensor], Tensor] = lambda y: y,
) -> None:
    r"""Fail unless :math:`y = \text{weight} \cdot \text{scale} (\hat x + \text{shift}) + \text{bias}`.

    :math:`\hat x` is what the same layer computes with weight 1, bias 0 and without latents.

    Args:
        network: a network whose output is that of its one normalized layer.
        x: its input.
        case: for messages.
        channel_last: where the channels of the output are.
        after: what the layer does to that.
    """
    standard = copy.deepcopy(network)
    for layer in standard.layers:
        layer.then = ()
    with torch.no_grad():
        for parameter, value in ((standard.layers[0].weight, 1), (standard.layers[0].bias, 0)):
            if parameter is not None:
                parameter.fill_(value)
    trust_statistics(standard)
    x_hat = standard(x)
    if channel_last:
        x_hat = x_hat.movedim(-1, 1)

    def channels(vector: Tensor | None, default: float) -> Tensor:
        vector = x_hat.new_full((CHANNELS,), default) if vector is None else vector
        return vector.view(*vector.shape, *(1,) * (x_hat.ndim - 2))

    def compare(y: Tensor, expected: Tensor, formula: str) -> None:
        y = y.movedim(-1, 1) if channel_last else y
        same(y, after(expected), f"the output is not {formula}, {case}")

    weight, bias = channels(network.layers[0].gain, 1), channels(network.layers[0].offset, 0)
    compare(network(x), weight * x_hat + bias, "weight * x_hat + bias")
    for size, what in (((), "one draw"), ((BATCH,), "a draw for each example")):
        shift, scale = latents(network, *size)
        expected = weight * channels(scale, 1) * (x_hat + channels(shift, 0)) + bias
        formula = f"weight * scale * (x_hat + shift) + bias with {what}"
        compare(network(x, shift, scale), expected, formula)


def has_gradients(network: LatentNetwork, x: Tensor, case: str) -> None:
    """Fail unless the gradients of input, parameters and latents pass torch's gradcheck."""
    values = {f"network.{name}": value.detach() for name, value in network.named_parameters()}
    values["input"], (values["shift"], values["scale"]) = x, latents(network)
    pure = Pure(network)

    def evaluate(name: str, changed: Tensor) -> Tensor:
        now = values | {name: changed}
        inputs = now.pop("input"), now.pop("shift"), now.pop("scale")
        y: Tensor = torch.func.functional_call(pure, now, inputs)
        return y

    for name, value in values.items():
        point = value.clone().requires_grad_()
        function = partial(evaluate, name)
        expect(
            torch.autograd.gradcheck(function, (point,), fast_mode=True, raise_exception=False),
            f"the gradient with respect to {name.removeprefix('network.network.')} is not that of "
            f"the function, {case}: is something detached, or under no_grad?",
        )


def names_the_layer(error: PyronormError | None, otherwise: str = "") -> str:
    """Fail unless there is an error, and it names the layer; return what it says."""
    expect(error is not None, f"{otherwise}: raise a PyronormError that begins with layer.name")
    expect("norm1" in str(error), f"an error does not name its layer, 'norm1': {error}")
    return f"refused: {error}"


class Snapshot:
    """What a network is: parameters and buffers bit by bit, and the attributes of its modules."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.tensors = {k: v.detach().clone() for k, v in self._tensors()}
        self.attributes = dict(self._attributes())

    def expect_unchanged(self, by: str) -> None:
        """Fail if something was written, added or replaced since, and name it."""
        rule = "running a model must never change it"
        for name, value in self._tensors():
            before = self.tensors.get(name, value)
            expect(torch.equal(value, before), f"{by} wrote {name}: {rule}")
        now = dict(self._attributes())
        for name in {**self.attributes, **now}:
            expect(name in self.attributes, f"{by} left a new attribute {name}: {rule}")
            unchanged = name in now and now[name] is self.attributes[name]
            expect(unchanged, f"{by} wrote {name}: {rule}")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.network.named_parameters()
        yield from self.network.named_buffers()

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        for name, module in self.network.named_modules():
            parts: list[object] = [module]
            if isinstance(module, LatentNorm):
                parts.append(module.normalizer)
            for part in parts:
                for key, value in vars(part).items():
                    yield f"{name}.{key}", value
                    if isinstance(value, dict):  # parameters, buffers, hooks
                        yield from ((f"{name}.{key}[{k!r}]", v) for k, v in value.items())


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Switch off run-time shape checks of jaxtyping: a compiler cannot see through them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
