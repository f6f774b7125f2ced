"""One step of Hamiltonian dynamics as one graph: potential, gradient and integrator together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["Leapfrog", "Point", "fold_constants", "value_and_gradient"]

Potential = Callable[[dict[str, Tensor]], Tensor]


class Point(NamedTuple):
    """A point of a trajectory, all latents in one vector.

    Attributes:
        z: position, unconstrained.
        r: momentum.
        velocity: the momentum with unit covariance, in which turns are looked for.
        gradient: of the potential at ``z``.
        potential: minus the log joint density at ``z``, nats.
        energy: the potential, and the kinetic energy of the momentum.
    """

    z: Tensor
    r: Tensor
    velocity: Tensor
    gradient: Tensor
    potential: Tensor
    energy: Tensor


class Leapfrog:
    r"""A step of the velocity Verlet integrator, with a potential of Pyro's in it.

    .. math::
        r' = r - \tfrac\epsilon2 \nabla U(z), \quad z' = z + \epsilon M^{-1} r', \quad
        r'' = r' - \tfrac\epsilon2 \nabla U(z')

    The potential is traced once, by Pyro's own evaluation of the model: its handlers, distributions
    and the modules of the network have run then, and what is left is arithmetic on one vector. What
    does not depend on the latents, as the first layers up to the first latents, is computed once.
    A potential that cannot be traced, or whose trace computes something else, is evaluated as it is.

    Args:
        potential: of a dictionary of unconstrained values by site, as Pyro's
            ``initialize_model`` makes it.
        like: such a dictionary, whose values are one point where the trace is made.
        dense: whether the mass matrix has off-diagonal elements.
        compile: whether the trace goes to ``torch.compile``. Where that fails, as without a C++
            compiler, a warning says so, and the trace is run as it is.
    """

    def __init__(
        self,
        potential: Potential,
        like: dict[str, Tensor],
        *,
        dense: bool,
        compile: bool,  # noqa: A002
    ) -> None:
        self._names = sorted(like)
        self._shapes = [like[name].shape for name in self._names]
        function = value_and_gradient(potential, like)
        z = self.pack(like)

        def step(
            z: Tensor,
            r: Tensor,
            gradient: Tensor,
            size: Tensor,
            inverse_mass: Tensor,
            root: Tensor,
        ) -> tuple[Tensor, ...]:
            def times(matrix: Tensor, vector: Tensor) -> Tensor:
                return matrix @ vector if dense else matrix * vector

            half = size / 2
            r = r - half * gradient
            z = z + size * times(inverse_mass, r)
            potential, gradient = function(z)
            r = r - half * gradient
            velocity = times(root, r)
            return z, r, velocity, gradient, potential, potential + velocity.dot(velocity) / 2

        unit = torch.eye(len(z)).to(z) if dense else torch.ones_like(z)
        # Each a tensor of its own, for a trace knows tensors by what they are.
        gradient = function(z)[1].clone()
        example = (z, torch.ones_like(z), gradient, z.new_tensor(1e-2), 1.3 * unit, 1.1 * unit)
        self._step: Callable[..., Sequence[Tensor]] = step
        self.traced = self.compiled = False
        traced = _traced(step, example)
        if traced is not None:
            self._step, self.traced = traced, True
        if compile and self.traced:
            self._compile(example)

    def pack(self, values: dict[str, Tensor]) -> Tensor:
        """All values in one vector, sites in alphabetical order, as Pyro's mass matrix has them."""
        return torch.cat([values[name].detach().reshape(-1) for name in self._names])

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """The values by site."""
        return _split(vector, self._names, self._shapes)

    def __call__(self, point: Point, size: Tensor, inverse_mass: Tensor, root: Tensor) -> Point:
        """The next point.

        Args:
            point: where to go from.
            size: of the step, negative to go back; a tensor without axes.
            inverse_mass: its diagonal, or the matrix.
            root: the same for what makes momenta of unit covariance.
        """
        with torch.no_grad():
            return Point(*self._step(*point[:2], point.gradient, size, inverse_mass, root))

    def _compile(self, example: tuple[Tensor, ...]) -> None:
        compiled = torch.compile(self._step, dynamic=False)
        try:
            with torch.no_grad():
                compiled(*example)
        except Exception as error:
            warnings.warn(
                "run_nuts: torch.compile fails here, so NUTS runs without it, to the same law but "
                f"slower. It needs a C++ compiler. {type(error).__name__}: {_first_line(error)}",
                stacklevel=2,
            )
            return
        self._step, self.compiled = compiled, True


def value_and_gradient(
    potential: Potential, like: dict[str, Tensor]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A potential and its gradient as a function of one vector.

    Args:
        potential: of a dictionary of values by site.
        like: such a dictionary; sites come in alphabetical order.
    """
    names = sorted(like)
    shapes = [like[name].shape for name in names]

    def function(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), pyro.validation_enabled(False):
            z = z.detach().requires_grad_()
            value = potential(_split(z, names, shapes))
            (gradient,) = torch.autograd.grad(value, z)
        return value.detach(), gradient

    return function


def fold_constants(module: fx.GraphModule) -> fx.GraphModule:
    """Compute what does not depend on the inputs of a graph, once.

    Nothing is changed in a graph with operations in place, which might change constants.

    Args:
        module: a graph of ATen's operations; changed.
    """
    graph = module.graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    if any(
        isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in calls
    ):
        return module
    known: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(module, str(node.target))
        elif node.op == "call_function" and not _is_random(node):
            inputs = node.all_input_nodes
            if inputs and all(one in known for one in inputs):
                args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(known.items()):
        needed = any(user not in known for user in node.users)
        if node.op == "get_attr" or not needed or not isinstance(value, Tensor):
            continue
        name = f"_folded{number}"
        module.register_buffer(name, value.detach().clone())
        with graph.inserting_before(node):
            folded = graph.get_attr(name)
        node.replace_all_uses_with(folded)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _traced(step: Callable[..., Any], example: tuple[Tensor, ...]) -> fx.GraphModule | None:
    """The step as a graph, if it can be one and computes the same, at other values as well."""
    try:
        # Twice, since autograd does not run inside of functionalize, which takes away what is in place.
        graph = make_fx(torch.func.functionalize(make_fx(step)(*example)))(*example)
        fold_constants(graph)
    except Exception:  # what depends on values, operations that functions cannot have
        return None
    z, r, *rest = example
    direction = torch.linspace(-1, 1, len(z)).to(z)
    other = (z + 0.1 * direction, r * direction, *rest)
    for values in (example, other):
        with torch.no_grad():
            expected, found = step(*values), graph(*values)
        pairs = zip(expected, found, strict=True)
        if not all(torch.allclose(a, b, 1e-3, 1e-3, equal_nan=True) for a, b in pairs):
            return None
    return graph


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _split(vector: Tensor, names: Sequence[str], shapes: Sequence[torch.Size]) -> dict[str, Tensor]:
    parts = vector.split([shape.numel() for shape in shapes])
    return {
        name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)
    }


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
