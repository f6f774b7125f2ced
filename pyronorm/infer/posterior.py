"""What a posterior is, and the one door by which it comes in."""

from __future__ import annotations

import inspect
from collections.abc import Sized
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.infer import MCMC

from pyronorm.checks import check_count
from pyronorm.errors import OptionError
from pyronorm.infer.pyro_guide import PyroGuide, draws_of_mcmc, is_pyro_guide
from pyronorm.latents import Draws
from pyronorm.model import NormalizationModel
from pyronorm.randomness import Seed

__all__ = ["KINDS", "Posterior", "as_posterior", "choose_num_samples"]

KINDS = (
    "a guide of pyronorm.guides, a StatisticsBank, Draws (of pyronorm.run_nuts, or stored), a finished "
    "Pyro MCMC run, a trained Pyro autoguide or EasyGuide, pyronorm.PyroGuide(guide) around any other "
    "Pyro guide, or pyronorm.Ensemble([(model, posterior), ...])"
)
"""The kinds of posteriors that there are, for messages."""


@runtime_checkable
class Posterior(Protocol):
    """Anything that gives draws of a network's latents.

    Guides, statistics banks, stored draws, chains and ensembles are posteriors; whatever has this
    method is one, too. :func:`pyronorm.predict`, :func:`pyronorm.evaluate`,
    :func:`pyronorm.to_arviz`, calibration and diagnostics ask for nothing else.
    """

    def draw(
        self, model: NormalizationModel, num_samples: int, *, data: Any = None, seed: Seed = None
    ) -> Draws:
        """Draw the latents.

        Args:
            model: the model whose latents to draw.
            num_samples: number of draws; an ensemble gives that many of each member.
            data: inputs ``x`` or pairs ``(x, y)``, for a posterior that looks at them.
            seed: see :func:`pyronorm.randomness.seeded`.

        Returns:
            The draws, on the device and in the dtype of the model's latents.
        """


def as_posterior(value: Any, where: str, model: NormalizationModel | None = None) -> Posterior:
    """Take a posterior, a guide of Pyro or a Pyro MCMC run; refuse anything else.

    Args:
        value: what came.
        where: the caller, for the message.
        model: the model whose latents an MCMC run has to have sampled.

    Raises:
        OptionError: if it is none of these; the message lists the kinds.
    """
    if isinstance(value, MCMC):
        if model is None:
            raise OptionError(
                f"{where}: for an MCMC run the model is needed, as_posterior(run, where, model)."
            )
        return draws_of_mcmc(value, model)
    if is_pyro_guide(value):
        return PyroGuide(value)
    if isinstance(value, type):
        raise OptionError(
            f"{where}: expected a posterior, got the class {value.__name__}. Make one of it first: "
            f"{value.__name__}(...)."
        )
    if isinstance(value, Posterior):
        _check_draw(value, where)
        return value
    fix = " Wrap a function that samples the sites: pyronorm.PyroGuide(function)."
    raise OptionError(
        f"{where}: expected a posterior, that is {KINDS}; got {type(value).__name__}."
        f"{fix if callable(value) and not isinstance(value, torch.nn.Module) else ''}"
    )


def _check_draw(value: Posterior, where: str) -> None:
    """Refuse what has a method of that name for something else, a law say."""
    try:
        inspect.signature(value.draw).bind(None, 1, data=None, seed=None)
    except (TypeError, ValueError):
        raise OptionError(
            f"{where}: expected a posterior, that is {KINDS}; got {type(value).__name__}, whose draw "
            "does not take (model, num_samples, *, data=None, seed=None)."
        ) from None


def choose_num_samples(
    posterior: Posterior, num_samples: int | None, default: int, where: str
) -> int:
    """What was asked for, else all of stored draws, else ``default`` or all rows of a smaller bank."""
    if num_samples is None:
        if isinstance(posterior, Draws):
            return len(posterior)
        return min(len(posterior), default) if isinstance(posterior, Sized) else default
    check_count(where, "num_samples", num_samples)
    return num_samples
