"""The negative ELBO of a guide and a prior that say their laws, without Pyro's handlers.

The definition is Pyro's: the same terms of the same draws, and so the same value and gradient as the
estimator of :func:`pyronorm.infer.elbo.default_elbo`. What a law says once is read here a fourth
time, beside Pyro's sites, draws and densities: a draw of the guide is handed to the prior, and each
site gives a divergence, or a difference of log densities at the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, NoReturn

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyronorm.errors import DataError
from pyronorm.guides import Guide
from pyronorm.laws import Law
from pyronorm.likelihoods.later import checked_later
from pyronorm.model import NormalizationModel
from pyronorm.normalizers.kernels import full_precision
from pyronorm.priors import Prior

__all__ = ["ClosedForm", "NoClosedFormError", "has_closed_form"]


class NoClosedFormError(Exception):
    """Something samples or needs what the laws of guide and prior do not say: Pyro's ELBO has it."""


def has_closed_form(model: NormalizationModel, guide: nn.Module) -> bool:
    """Whether model and guide are what their laws say, as far as can be seen before they run.

    Args:
        model: the model.
        guide: any guide.
    """
    return (
        isinstance(guide, Guide)
        and guide.has_density
        and guide.samples_law(model)
        and type(model).forward is NormalizationModel.forward
        and type(model.prior).sample is Prior.sample
        and not any(_has_hooks(part) for part in (model, guide))
        and not am_i_wrapped()
    )


class ClosedForm:
    r"""The negative ELBO of a mini-batch as one function of tensors.

    .. math::
        -\frac{N}{B} \sum_{i=1}^B \log p(y_i | x_i, z) + w\, \mathrm{KL}(q \| p), \qquad z \sim q

    with the divergence in closed form where the guide is trained so, and else the difference of log
    densities at ``z``.

    Args:
        model: the model.
        guide: one of this library's kind, for which :func:`has_closed_form`.
    """

    def __init__(self, model: NormalizationModel, guide: Guide) -> None:
        self._model, self._guide = model, guide
        self._known: set[Any] = set()  # shapes that were found to fit
        self._doubts: list[Tensor] = []
        self._laws: dict[Any, Law] = {}
        self._lasting = _is_of_numbers(model.prior)

    def __call__(
        self,
        weight: float | Tensor,
        x: Any,
        y: Tensor,
        counts: Tensor | None = None,
        *,
        values: bool | None = False,
    ) -> Tensor:
        """The negative ELBO.

        Args:
            weight: ``w``.
            x: inputs.
            y: targets.
            counts: how often each example counts, shape ``(batch,)``.
            values: whether to check the values of the targets; None to do so in
                :meth:`refuse_impossible`, so that nothing waits.

        Raises:
            NoClosedFormError: if the laws are not all there is.
            ShapeError: if shapes disagree.
            DataError: if values are impossible.
        """
        with _NoSites():
            return self.loss(weight, x, y, counts, lambda *found: self._check(values, *found))

    def loss(
        self,
        weight: float | Tensor,
        x: Any,
        y: Tensor,
        counts: Tensor | None = None,
        check: Callable[..., None] | None = None,
    ) -> Tensor:
        """The same without a check, for a compiler."""
        model = self._model
        like = model.network.like
        with full_precision(like):  # densities need all their digits
            shift, scale, divergence = self._latents(like)
        output, dims, rows = model.outputs(x, shift, scale)
        with full_precision(like):
            if check is not None:
                check(y, counts, output, dims)
            observed, value = model.likelihood.objective(output, y, dims, counts)
            fit: Tensor = observed.log_prob(value).sum()
            if isinstance(weight, Tensor) or weight != 1:
                divergence = weight * divergence
            return torch.sub(divergence, fit, alpha=model.num_data / rows)

    def refuse_impossible(self) -> None:
        """Refuse the targets that were not looked at in time.

        Raises:
            DataError: if values are impossible.
        """
        doubts, self._doubts = self._doubts, []
        if doubts and not bool(torch.stack(doubts).all()):
            raise DataError(
                "fit: train_data has targets outside of the support of "
                f"{type(self._model.likelihood).__name__}, or not finite, or weights that are negative."
            )

    def _latents(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A draw, and the divergence."""
        draws = self._model.num_draws
        q = _Draw((draws, 1) if draws > 1 else ())
        shift, scale = self._guide.whole_law().run(q)
        p = _Given(q)
        self._prior(like).run(p)
        total, *others = _terms(q, p, self._guide.has_analytic_kl)
        for other in others:
            total = total + other
        return shift, scale, total / draws if draws > 1 else total

    def _prior(self, like: Tensor) -> Law:
        """The law of the prior: that of numbers is made once."""
        prior, kind = self._model.prior, (like.dtype, like.device)
        if not self._lasting or torch.compiler.is_compiling():
            return prior.law(self._model.space, like)
        if kind not in self._laws:
            self._laws[kind] = prior.law(self._model.space, like)
        return self._laws[kind]

    def _check(self, values: bool | None, y: Any, counts: Any, output: Tensor, dims: int) -> None:
        model = self._model
        found = (
            *((v.shape, v.dtype) if isinstance(v, Tensor) else v for v in (y, counts, output)),
        )
        if values or found not in self._known:
            model.check_data(y, counts, output, dims, values=bool(values))
            self._known.add(found)
        if values is None:
            with checked_later() as doubts:
                model.check_data(y, counts, output, dims, values=True)
            self._doubts += doubts


class _Draw:
    """Draws each variable of a law, in the plates of the model."""

    def __init__(self, plates: tuple[int, ...]) -> None:
        self._plates = plates
        self.sites: dict[str, tuple[Any, Tensor]] = {}

    def __call__(self, name: str, fn: Any, *, auxiliary: bool = False) -> Tensor:
        if self._plates and fn.batch_shape != self._plates:
            fn = fn.expand(self._plates)
        if not fn.has_rsample:  # the gradient is that of another function, and Pyro knows which
            raise NoClosedFormError(name)
        value: Tensor = fn.rsample()
        self.sites[name] = fn, value
        return value


class _Given:
    """Gives each variable of a law the value that was drawn from another."""

    def __init__(self, drawn: _Draw) -> None:
        self._drawn = drawn
        self.sites: dict[str, Any] = {}

    def __call__(self, name: str, fn: Any, *, auxiliary: bool = False) -> Tensor:
        if name not in self._drawn.sites:
            raise NoClosedFormError(name)
        self.sites[name] = fn
        return self._drawn.sites[name][1]


def _terms(drawn: _Draw, given: _Given, analytic: bool) -> list[Tensor]:
    terms = []
    for name, (q, value) in drawn.sites.items():
        p = given.sites.get(name)
        if p is not None and analytic:
            try:
                terms.append(kl_divergence(q, p).sum())
                continue
            except NotImplementedError:
                pass
        term = q.log_prob(value)
        terms.append((term if p is None else term - p.log_prob(value)).sum())
    return terms


class _NoSites(Messenger):
    """Context in which nothing may sample: the objective would miss the density of its site."""

    def _pyro_sample(self, msg: Any) -> NoReturn:
        raise NoClosedFormError(msg["name"])


def _is_of_numbers(prior: Any) -> bool:
    """Whether a prior has nothing in it that could change."""
    if not is_dataclass(prior):
        return False
    values = (getattr(prior, field.name) for field in fields(prior))
    return all(isinstance(value, (int, float, str, Enum, NoneType)) for value in values)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
