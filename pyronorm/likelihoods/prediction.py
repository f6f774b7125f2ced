"""What a likelihood predicts, averaged over draws of the latents."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from pyronorm.arrays import Array, to_tensor
from pyronorm.checks import Count, Probability, checked
from pyronorm.display import displayed
from pyronorm.errors import DataError, OptionError
from pyronorm.likelihoods.intervals import Intervals
from pyronorm.likelihoods.mixture import entropies, mixture_moments, unwrap
from pyronorm.likelihoods.quantiles import mixture_quantiles
from pyronorm.randomness import Seed, seeded

if TYPE_CHECKING:
    from pyronorm.likelihoods.base import Likelihood

__all__ = ["Prediction"]

_SHOWN = 5  # examples in the HTML table


@displayed
@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    r"""The posterior predictive distribution of each example: the mixture over draws.

    :math:`p(y | x) = \frac1S\sum_s p(y | x, z_s)`. Made by :func:`pyronorm.predict` and by
    :meth:`pyronorm.likelihoods.Likelihood.predict`.

    It keeps the four summaries and, with ``keep_samples=True``, the network's outputs, ``S`` times as
    large: :attr:`samples`, :meth:`quantiles`, :meth:`interval`, :meth:`sample`, :meth:`log_prob` and
    :meth:`metrics` are computed from these and refuse to work without. For data too large to keep
    them, :func:`pyronorm.evaluate` gives the metrics batch by batch.

    Shape:
        - one value of ``y`` per example, or several: ``(batch, *event)``, as the likelihood says
        - ``mean`` and ``variance``: ``(batch, *event)``; for classes the probabilities and their
          indicators' variances, ``(batch, *event, class)``
        - ``entropy`` and ``mutual_information``: ``(batch, *event)``; one per example for
          :class:`~pyronorm.likelihoods.MultivariateNormal`, whose values are vectors

    Attributes:
        likelihood: a copy of the likelihood, as it was.
        mean: predictive mean, averaged over draws.
        variance: predictive variance, noise included.
        entropy: of the predictive distribution, in nats: the total uncertainty.
        mutual_information: between the data and the latents, in nats: what knowing the latents would
            tell, the epistemic part of ``entropy``. Identically 0 where all draws are equal, as those of
            a point are: it tells no outliers then, the entropy may.
        outputs: the network's output given each draw, ``(sample, batch, *out)``; None if not kept.
    """

    likelihood: Likelihood
    mean: Tensor
    variance: Tensor
    entropy: Tensor
    mutual_information: Tensor
    outputs: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, likelihood: Likelihood, output: Tensor, *, keep_samples: bool) -> Prediction:
        """The mixture over draws; see :meth:`pyronorm.likelihoods.Likelihood.predict`.

        Raises:
            ShapeError: if the output has not the axes that the likelihood needs.
        """
        parts = []
        for part in likelihood.parts(output):
            distribution = likelihood.distribution(part, 1)
            parts.append((*mixture_moments(distribution), *entropies(distribution)))
        mean, variance, entropy, information = (torch.cat(p) for p in zip(*parts, strict=True))
        kept = output.detach() if keep_samples else None
        frozen = copy.deepcopy(likelihood).requires_grad_(False)
        return cls(frozen, mean, variance, entropy, information, kept)

    @classmethod
    @checked
    def join(cls, parts: Sequence[Prediction]) -> Prediction:
        """The predictions of several batches as one.

        Args:
            parts: of one likelihood and the same draws.

        Raises:
            DataError: if there are none.
        """
        if not parts:
            raise DataError("data: there is no batch.")
        kept = [part.outputs for part in parts if part.outputs is not None]
        return cls(
            parts[0].likelihood,
            torch.cat([part.mean for part in parts]),
            torch.cat([part.variance for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat([part.mutual_information for part in parts]),
            torch.cat(kept, 1) if len(kept) == len(parts) else None,
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.mean)

    @property
    def samples(self) -> Tensor | None:
        """The mean given each draw, ``(sample, batch, ...)``; None if outputs are not kept."""
        return None if self.outputs is None else self.likelihood.expected(self.outputs, 1)

    def tempered(self, temperature: float | Tensor) -> Prediction:
        """The prediction at a temperature, for each draw: :class:`pyronorm.likelihoods.Tempered`.

        Args:
            temperature: positive, as :func:`pyronorm.diagnostics.fit_temperature` finds it.

        Raises:
            OptionError: if outputs are not kept, or the likelihood has no temperature.
        """
        return self.likelihood.tempered(temperature).predict(self._kept("tempered"))

    @checked
    def quantiles(self, q: float | Sequence[float] | Tensor) -> Tensor:
        r"""Quantiles of the predictive distribution: the smallest value with :math:`P(Y \le y) \ge q`.

        By bisection of the mixture's distribution function where torch or SciPy knows that of a
        draw: normal, Student's t, Poisson, negative binomial, binomial and binary values,
        ordered classes, and all with a ``cdf``. Otherwise of 4096 samples from a fixed seed. Values
        that are vectors have quantiles for each component.

        Args:
            q: levels between 0 and 1, one or several.

        Returns:
            Shape ``(batch, *event)``, or ``(q, batch, *event)`` for several.

        Raises:
            OptionError: if a level is not between 0 and 1, classes have no order, or outputs are
                not kept.
        """
        outputs = self._kept("quantiles")
        levels = torch.as_tensor(q, dtype=torch.float64, device="cpu")
        if levels.ndim > 1 or not bool(((levels > 0) & (levels < 1)).all()):
            raise OptionError(f"quantiles: levels must be between 0 and 1, got {q}.")
        with torch.no_grad():
            parts = [
                self._quantiles(part, levels.reshape(-1)) for part in self.likelihood.parts(outputs)
            ]
        found = torch.cat(parts, 1)
        return found if levels.ndim else found[0]

    @checked
    def interval(self, level: Probability = 0.9) -> Intervals:
        r"""The central interval of the predictive distribution, :math:`\alpha` = 1 - ``level`` outside.

        From the quantile :math:`\alpha/2` to the quantile :math:`1 - \alpha/2`, of each value.

        Args:
            level: probability of the interval; counts have at least that.

        Raises:
            OptionError: as for :meth:`quantiles`.
        """
        if not 0 < level < 1:
            raise OptionError(f"interval: level must be between 0 and 1, got {level}.")
        lower, upper = self.quantiles([(1 - level) / 2, (1 + level) / 2])
        mean = self.mean
        if mean.shape != lower.shape:  # classes: the mean of their numbers
            mean = (mean * torch.arange(mean.shape[-1], device=mean.device)).sum(-1)
        return Intervals(mean, lower, upper)

    @checked
    def sample(self, num_samples: Count = 1, *, seed: Seed = None) -> Tensor:
        """Draw ``y`` itself, noise included.

        Each sample takes one draw of the latents for all examples, so examples are dependent as in
        the model.

        Args:
            num_samples: number of samples.
            seed: for the samples, see :func:`pyronorm.randomness.seeded`.

        Returns:
            Shape ``(num_samples, batch, *event)``.

        Raises:
            OptionError: if ``num_samples`` is below 1, or outputs are not kept.
        """
        outputs = self._kept("sample")
        if num_samples < 1:
            raise OptionError(f"sample: num_samples must be at least 1, got {num_samples}.")
        with torch.no_grad(), seeded(seed, outputs):
            index = torch.randint(len(outputs), (num_samples,), device=outputs.device)
            drawn: Tensor = self.likelihood.distribution(outputs[index], 1).sample()
        return drawn

    @checked
    def log_prob(self, y: Array) -> Tensor:
        r"""Log predictive density :math:`\log\frac1S\sum_s p(y_i | x_i, z_s)` of each example, in nats.

        Args:
            y: data for the examples, ``(batch, *event)``, a tensor or an array.

        Returns:
            Shape ``(batch,)``; NaN where all values are missing.

        Raises:
            OptionError: if outputs are not kept.
            ShapeError: if ``y`` does not fit.
            DataError: if values are impossible.
        """
        outputs = self._kept("log_prob")
        y = to_tensor(y).to(outputs.device)
        with torch.no_grad():
            density = torch.logsumexp(self.likelihood.log_prob(outputs, y, 1), 0)
        density = density - math.log(len(outputs))
        return density.masked_fill(~self.likelihood.present(y), math.nan)

    @checked
    def nll(self, y: Array) -> float:
        """Mean negative log predictive density per example, in nats, over examples with data.

        Args:
            y: data for the examples, ``(batch, *event)``, a tensor or an array.

        Raises:
            OptionError: if outputs are not kept.
            DataError: as :meth:`log_prob`, or if all values are missing.
        """
        y = to_tensor(y)
        density = self.log_prob(y)
        density = density[self.likelihood.present(y.to(density.device))]
        if not len(density):
            raise DataError("nll: there are no examples, or all values are missing.")
        return -float(density.double().mean())

    @checked
    def metrics(self, y: Array) -> dict[str, float]:
        """All metrics that the kind of data allows: see :meth:`pyronorm.likelihoods.Scores.metrics`.

        Args:
            y: data for the examples, ``(batch, *event)``, a tensor or an array.

        Raises:
            OptionError: if outputs are not kept.
            ShapeError: if ``y`` does not fit.
            DataError: if values are impossible, or all are missing.
        """
        return self.likelihood.scores(self._kept("metrics"), to_tensor(y)).metrics()

    def __repr__(self) -> str:
        """Say what is predicted, and from how many draws."""
        draws = "not kept" if self.outputs is None else str(len(self.outputs))
        return (
            f"Prediction({type(self.likelihood).__name__}, {len(self)} examples, mean "
            f"{tuple(self.mean.shape)}, samples {draws})"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """The first examples, for notebooks."""
        columns = {
            "mean": self.mean,
            "std": self.variance.sqrt(),
            "entropy": self.entropy,
            "mutual information": self.mutual_information,
        }
        number = range(min(_SHOWN, len(self)))
        shown = {name: [_few(values[i]) for i in number] for name, values in columns.items()}
        return {"example": [*number], **shown}

    def _quantiles(self, outputs: Tensor, levels: Tensor) -> Tensor:
        distribution = self.likelihood.distribution(outputs, 1)
        base = unwrap(distribution)
        if not isinstance(base, Categorical):
            return mixture_quantiles(distribution, levels)
        if not self.likelihood.ordered:
            raise OptionError(
                f"quantiles: the classes of {type(self.likelihood).__name__} have no order."
            )
        below = base.probs.mean(0).cumsum(-1)
        last = below.shape[-1] - 1
        return torch.stack([(below < float(q)).sum(-1).clamp(max=last) for q in levels])

    def _kept(self, what: str) -> Tensor:
        if self.outputs is None:
            raise OptionError(
                f"{what}: the prediction has no samples; predict with keep_samples=True."
            )
        return self.outputs


def _few(value: Tensor) -> str:
    """The first components of a value, to three digits."""
    flat = value.flatten().tolist()
    return ", ".join(f"{v:.3g}" for v in flat[:4]) + (", …" if len(flat) > 4 else "")
