"""What training optimizes, how it takes its steps, and on what it is judged."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro.infer import ELBO
from torch.optim import LBFGS, Optimizer

from pyronorm.checks import Count, Positive, check_count, check_positive
from pyronorm.errors import OptionError
from pyronorm.infer.data import Data
from pyronorm.infer.elbo import check_kl_weight

__all__ = ["Objective", "Optimization", "Validation"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    r"""What :func:`pyronorm.fit` maximizes.

    .. math:: \frac1N\Big(\sum_i \mathbb E_q \log p(y_i|x_i,z) - w\,\mathrm{KL}(q \| p)\Big)

    Args:
        elbo: Pyro's estimator; None for TraceMeanField_ELBO where the guide has closed-form KL
            divergences and Trace_ELBO where not.
        kl_weight: ``w``, or a function of the epochs done so far (a fraction within an epoch), e.g.
            ``lambda epoch: min(1.0, epoch / 5)``.

    Raises:
        OptionError: if ``elbo`` is no ELBO of Pyro, or ``kl_weight`` negative or not finite.
    """

    elbo: ELBO | None = None
    kl_weight: float | Callable[[float], float] = 1.0

    def __post_init__(self) -> None:
        if self.elbo is not None and not isinstance(self.elbo, ELBO):
            raise OptionError(
                "Objective: elbo must be an object such as pyro.infer.Trace_ELBO(), got "
                f"{_named(self.elbo)}."
            )
        if not callable(self.kl_weight):
            check_kl_weight(self.kl_weight)

    def weight(self, epochs_done: float) -> float:
        """The KL weight after so many epochs.

        Args:
            epochs_done: a fraction within an epoch.

        Raises:
            OptionError: if the function ``kl_weight`` gives a negative number, or one not finite.
        """
        if not callable(self.kl_weight):
            return float(self.kl_weight)
        weight = self.kl_weight(epochs_done)
        check_kl_weight(weight)
        return float(weight)


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How :func:`pyronorm.fit` takes its steps.

    Args:
        optimizer: makes the optimizer from parameter groups, each with a ``name`` (``"network"``,
            ``"likelihood"``, ``"guide"``), e.g. ``lambda groups: SGD(groups, lr=0.1)``; None for Adam.
            On a CPU SGD, Adam and AdamW take their steps fused (``fused=True``), unless they were made
            with ``fused`` or ``foreach``. An optimizer that evaluates the loss itself (LBFGS, or any
            whose ``step`` requires a ``closure``) gets one that repeats the same random draws.
        scheduler: makes a learning rate scheduler from the optimizer. It is stepped after each
            epoch; ``ReduceLROnPlateau`` with the validation NLL, or with the training loss where
            there is no validation.
        step_scheduler: the same, stepped after each step of the optimizer (``OneCycleLR``).
        gradient_clip_norm: largest norm of the gradient; None does not clip.
        accumulate: batches per step, whose gradients are averaged.
        compile: compile the objective, network included, in one graph (``torch.compile``), from the
            second epoch on; on a GPU it is also captured in CUDA graphs, optimizer, schedulers and
            clipping outside of them. It needs a guide that says its law and no estimator of one's own.
            Random numbers are then others than without it. Compiling takes a minute or more.

    Raises:
        OptionError: if an option is out of range, or an object where a function that makes it
            belongs.
    """

    optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None
    scheduler: Callable[[Optimizer], Any] | None = None
    step_scheduler: Callable[[Optimizer], Any] | None = None
    gradient_clip_norm: Positive | None = None
    accumulate: Count = 1
    compile: bool = False

    def __post_init__(self) -> None:
        for name, example in (
            ("optimizer", "lambda groups: torch.optim.SGD(groups, lr=0.1)"),
            ("scheduler", "lambda optimizer: CosineAnnealingLR(optimizer, epochs)"),
            ("step_scheduler", "lambda optimizer: OneCycleLR(optimizer, 0.1, steps)"),
        ):
            value = getattr(self, name)
            made = isinstance(value, Optimizer) or type(value).__module__.startswith("pyro.optim")
            if value is not None and (made or not callable(value)):
                raise OptionError(
                    f"Optimization: {name} must be a function that makes a torch {name}, such as "
                    f"{example}, got {_named(value)}."
                )
        if self.gradient_clip_norm is not None:
            check_positive("Optimization", "gradient_clip_norm", self.gradient_clip_norm)
        check_count("Optimization", "accumulate", self.accumulate)
        if not isinstance(self.compile, bool):
            raise OptionError(f"Optimization: compile must be True or False, got {self.compile!r}.")


@dataclass(frozen=True)
class Validation:
    """Data that training is judged on after each epoch, by the predictive NLL.

    The draws are those of one seed, the same in each epoch, so that epochs differ by what was
    learned, and training goes as it would without validation.

    Args:
        data: pairs ``(x, y)``: a DataLoader, a Dataset, or two tensors.
        num_samples: draws of the latents.

    Raises:
        OptionError: if ``num_samples`` is below 1.
    """

    data: Data = field(repr=False)
    num_samples: Count = 8

    def __post_init__(self) -> None:
        check_count("Validation", "num_samples", self.num_samples)


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether the optimizer evaluates the loss itself."""
    if isinstance(optimizer, LBFGS):
        return True
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _named(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__module__}.{type(value).__name__}"
