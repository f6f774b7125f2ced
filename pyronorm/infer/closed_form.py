"""The negative ELBO of a guide and a prior that say their laws, without Pyro's handlers.

The definition is Pyro's: the same terms of the same draws, and so the same value and gradient as the
estimator of :func:`pyronorm.infer.elbo.default_elbo`. What a law says once is read here a fourth
time, beside Pyro's sites, draws and densities: a draw of the guide is handed to the prior, and each
site gives a divergence, or a difference of log densities at the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NoReturn

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyronorm.errors import DataError
from pyronorm.guides import Guide
from pyronorm.laws import Independent, Law
from pyronorm.laws.diagonal import Diagonal, divergence_to
from pyronorm.laws.divergence import closed_form
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
    r"""The negative ELBO of a mini-batch per example of the data, as one function of tensors.

    .. math::
        -\frac{1}{B} \sum_{i=1}^B \log p(y_i | x_i, z) + \frac{w}{N}\, \mathrm{KL}(q \| p),
        \qquad z \sim q

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
        self._lasting = model.prior.is_of_numbers
        # A law that is overridden may follow from something else.
        self._says_key = _home(guide, "law") is _home(guide, "law_key") and guide.hyper is None
        # What does not change, with what it follows from.
        self._made: dict[str, tuple[Hashable, Any]] = {}

    def __call__(
        self,
        weight: float | Tensor,
        x: Any,
        y: Tensor,
        counts: Tensor | None = None,
        *,
        values: bool | None = False,
    ) -> tuple[Tensor, Tensor]:
        """The negative ELBO per example, and the log likelihood of the batch, without a gradient.

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
    ) -> tuple[Tensor, Tensor]:
        """The same without a check, for a compiler."""
        model = self._model
        like = self._guide.like  # found sooner than the network's
        with full_precision(like):  # densities need all their digits
            shift, scale, divergence = self._latents(like)
        output, dims, rows = model.outputs(x, shift, scale)
        with full_precision(like):
            if check is not None:
                check(y, counts, output, dims)
            fit = model.likelihood.total(output, y, dims, counts)
            share = divergence * (weight / model.num_data)
            loss = torch.sub(share, fit, alpha=1 / rows)
            return loss, fit.detach()

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
        guide, draws = self._guide, self._model.num_draws
        kind = (like.dtype, like.device, draws)
        of_p = kind if self._lasting else None
        of_q = self._key_of_q(kind)
        q = self._kept("q", of_q, guide.whole_law)
        if isinstance(q, Diagonal) and guide.has_analytic_kl and draws == 1 and of_p is not None:
            divergence = self._kept("divergence", of_p, lambda: divergence_to(self._prior(like)))
            if divergence is not None:
                return q.draw_against(divergence)
        if torch.compiler.is_compiling():  # which folds constants itself
            of_p = None
        p = self._kept("p", of_p, lambda: self._prior(like))
        drawn = _Draw((draws, 1) if draws > 1 else ())
        shift, scale = q.run(drawn)
        of_both = None if of_p is None else of_q
        known = None if of_both is None else self._made.get("total")
        if known is not None and known[0] == of_both:
            return shift, scale, known[1]
        given = _Given(drawn)
        p.run(given)
        (total, *others), exact = _terms(drawn, given, guide.has_analytic_kl)
        for other in others:
            total = total + other
        total = total / draws if draws > 1 else total
        one_by_one = isinstance(q, Independent) and isinstance(p, Independent)
        if one_by_one and (exact or guide.is_point):  # the same for every draw
            total = self._kept("total", of_both, lambda: total)
        return shift, scale, total

    def _prior(self, like: Tensor) -> Law:
        return self._model.prior.law(self._model.space, like)

    def _key_of_q(self, kind: tuple[Any, ...]) -> Hashable:
        """What the guide's law follows from; None for its parameters."""
        if not self._says_key or torch.compiler.is_compiling():
            return None
        key = self._guide.law_key()
        return None if key is None else (key, *kind)

    def _kept(self, name: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """What a function makes, once for each key; a fresh one if there is none."""
        if key is None:
            return make()
        known = self._made.get(name)
        if known is None or known[0] != key:
            known = self._made[name] = key, make()
        return known[1]

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


def _terms(drawn: _Draw, given: _Given, analytic: bool) -> tuple[list[Tensor], bool]:
    """The terms of the divergence, and whether all are in closed form."""
    terms, exact = [], analytic
    for name, (q, value) in drawn.sites.items():
        p = given.sites.get(name)
        known = closed_form(q, p) if p is not None and analytic else None
        if known is None:
            exact = False
            known = q.log_prob(value)
            known = known if p is None else known - p.log_prob(value)
        terms.append(known.sum())
    return terms, exact


class _NoSites(Messenger):
    """Context in which nothing may sample: the objective would miss the density of its site."""

    def _pyro_sample(self, msg: Any) -> NoReturn:
        raise NoClosedFormError(msg["name"])


def _home(guide: Guide, name: str) -> type:
    """The class that defines a method of a guide."""
    return next(kind for kind in type(guide).__mro__ if name in vars(kind))


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
