"""The evidence lower bound: which estimator fits a guide, and the weight of its KL part."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyronorm.errors import OptionError
from pyronorm.guides import Guide
from pyronorm.infer.estimators import DeviceMeanFieldELBO, DeviceTraceELBO

__all__ = ["KLWeight", "check_kl_weight", "default_elbo"]


def default_elbo(guide: Callable[..., Any]) -> ELBO:
    """``TraceMeanField_ELBO`` for guides with analytic KL divergences, else ``Trace_ELBO``.

    Both are those of :mod:`pyronorm.infer.estimators`, which give Pyro's losses and gradients without
    reading them on the host.

    Args:
        guide: any Pyro guide.

    Raises:
        OptionError: if the guide has no density, so no ELBO.
    """
    if isinstance(guide, Guide) and not guide.has_density:
        raise OptionError(
            f"{type(guide).__name__} is known only through its draws, so it has no ELBO and cannot "
            "be trained. Train with guides.Point or another guide, then predict with it."
        )
    if isinstance(guide, Guide) and guide.has_analytic_kl:
        return DeviceMeanFieldELBO()
    return DeviceTraceELBO()


def check_kl_weight(weight: Any) -> None:
    """Refuse what is no weight of a KL divergence.

    Args:
        weight: what was given.

    Raises:
        OptionError: if it is negative, not finite, or no number.
    """
    number = isinstance(weight, Real) and not isinstance(weight, bool)
    if not number or not 0 <= weight < float("inf"):
        raise OptionError(f"kl_weight must be at least 0 and finite, got {weight!r}.")


class KLWeight(Messenger):
    r"""Scale the log densities of all latent sites, in model and guide.

    Around an ELBO it gives :math:`\mathbb E_q \log p(y|z) - w\, \mathrm{KL}(q \| p)`. With
    :math:`w < 1` the posterior is "cold"; a schedule that rises to 1 is the usual warm-up.

    Args:
        weight: ``w`` ≥ 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        check_kl_weight(weight)
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight
