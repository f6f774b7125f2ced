"""One traced call as an operation on moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pyronorm.propagation.tracing import Call, Parameter, Value
from pyronorm.stats.propagation import Gaussian

__all__ = ["Operation", "Rule", "Step", "UnsupportedError", "each", "plain_name"]

Rule: TypeAlias = Callable[..., Gaussian]
"""Takes a :class:`Step` and the moments of the inputs that have some."""

_ALIASES = {"dim": "axis", "training": "train"}  # torch takes both names
_OPERATORS = ("add", "sub", "mul", "truediv", "div")


class UnsupportedError(Exception):
    """Raised by a rule: what exactly it cannot do."""


@dataclass(frozen=True, eq=False)
class Operation:
    """What there is to know of an operation: which calls it is, and what it does to moments.

    Attributes:
        rule: computes moments of the output from those of the inputs.
        modules: the module classes that do it, subclasses included.
        functions: the functions that do it, by their plain names.
        pointwise: whether each output value is a function of one value of each input, and of
            constants.
        several: whether it has a use for more than one input with moments.
        independent: whether it takes these inputs for independent: sums and products.
        increasing: whether it never decreases, so that a max pooling behind it can be done before it;
            a function of the step where that depends on the arguments.
        maximum: whether it is a max pooling.
        begins: whether its output does not depend on the moments before it.
    """

    rule: Rule
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[str, ...] = ()
    pointwise: bool = False
    several: bool = False
    independent: bool = False
    increasing: bool | Callable[[Step], bool] = False
    maximum: bool = False
    begins: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One call, as an operation on moments.

    Attributes:
        call: the call, with arguments and shapes.
        operation: what it does to them.
        module: the module called; None for a function.
        place: the module whose code makes the call.
        owners: modules that hold the parameters among the arguments, by name.
        activation: the step before a max pooling, if the two may change places.
    """

    call: Call
    operation: Operation
    module: nn.Module | None
    place: nn.Module
    owners: dict[str, nn.Module]
    activation: Step | None = None

    def moments(self, *inputs: Gaussian) -> Gaussian:
        """Moments of the output from those of the inputs that have some."""
        return self.operation.rule(self, *inputs)

    @property
    def increasing(self) -> bool:
        """Whether this call never decreases in its input."""
        increasing = self.operation.increasing
        return increasing if isinstance(increasing, bool) else increasing(self)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values whose moments the rule takes."""
        return self.call.inputs if self.activation is None else self.activation.inputs

    @property
    def shape(self) -> torch.Size:
        """Shape of the first input."""
        return self.call.inputs[0].shape

    @property
    def out_shape(self) -> torch.Size:
        """Shape of the output."""
        return self.call.outputs[0].shape

    @property
    def name(self) -> str:
        """Name of the module's class, or plain name of the function."""
        return plain_name(self.call.function) if self.module is None else type(self.module).__name__

    def option(self, position: int, name: str, default: Any = None) -> Any:
        """An argument: an attribute of the module, or positional or by keyword of the function."""
        if self.module is not None:
            return getattr(self.module, name, default)
        if position < len(self.call.args):
            return self.call.args[position]
        alias = _ALIASES.get(name, name)
        return self.call.kwargs.get(name, self.call.kwargs.get(alias, default))

    def parameter(self, value: Parameter, like: Tensor) -> Tensor:
        """A parameter as it is now, in the precision of the moments."""
        found: Tensor = getattr(self.owners[value.owner], value.attribute)
        return found.to(like.dtype)

    def weight(self, like: Tensor) -> Tensor:
        """The argument ``weight``."""
        value = self._tensor(1, "weight", like)
        if value is None:
            raise UnsupportedError("without a weight")
        return value

    def bias(self, like: Tensor) -> Tensor | None:
        """The argument ``bias``."""
        return self._tensor(2, "bias", like)

    def _tensor(self, position: int, name: str, like: Tensor) -> Tensor | None:
        value = self.option(position, name)
        if isinstance(value, Parameter):
            return self.parameter(value, like)
        if isinstance(value, Value):
            raise UnsupportedError(f"with a computed {name}")
        if value is not None and self.module is None:
            raise UnsupportedError(f"with a {name} that is no parameter or buffer of the network")
        return None if value is None else value.to(like.dtype)


def plain_name(function: str | None) -> str:
    """The name without the underscores of in-place and operator forms: __iadd__, add_ -> add."""
    name = function or ""
    plain = name.strip("_")
    operator = name.startswith("__") and plain[:1] in ("i", "r") and plain[1:] in _OPERATORS
    return plain[1:] if operator else plain


def each(value: Any, axes: int) -> tuple[int, ...]:
    """One value per axis, of an argument that may be one for all."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
