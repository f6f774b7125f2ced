"""What a likelihood has to hold, as a class of checks to inherit."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from pyronorm.conversion import convert
from pyronorm.diagnostics import evaluate, to_arviz
from pyronorm.errors import PyronormError
from pyronorm.guides import MeanField
from pyronorm.infer import fit, predict
from pyronorm.likelihoods import Likelihood
from pyronorm.model import NormalizationModel
from pyronorm.testing.claims import SkipTest, check, expect, same, without_type_checks

__all__ = ["LikelihoodConformance"]

_BATCH, _DRAWS = 5, 3
_MANY = 4000  # samples; what they show is asked for within six standard errors


class LikelihoodConformance(ABC):
    """Checks that every :class:`~pyronorm.likelihoods.Likelihood` passes; inherit it in a test class.

    .. code-block:: python

        class TestMine(LikelihoodConformance):
            out = (2,)

            def make(self):
                return Mine()

    Each check is a method ``test_...``. It raises an AssertionError that says what broke, or skips
    itself where it does not apply. Data are sampled from the likelihood itself, for random outputs
    around 0, in float64 unless precision is the question.
    """

    out: ClassVar[tuple[int, ...]] = ()
    """Shape of the network's output for one example, without the batch."""

    @abstractmethod
    def make(self) -> Likelihood:
        """Return the likelihood; two calls give equal ones."""

    # The distribution.

    @check
    def test_one_log_density_per_example(self) -> None:
        """The batch shape is (*samples, batch), whatever the sample axes; all else are events."""
        likelihood = self._make()
        events = set()
        for samples in ((), (_DRAWS,), (_DRAWS, 2)):
            output = self._output(*samples)
            distribution: Any = likelihood.distribution(output, len(samples))
            batch = (*samples, _BATCH)
            expect(
                tuple(distribution.batch_shape) == batch,
                f"for an output of shape {tuple(output.shape)} with {len(samples)} sample axes the "
                f"distribution has batch shape {tuple(distribution.batch_shape)} instead of {batch}: "
                "return pyronorm.likelihoods.per_example(distribution, num_sample_dims)",
            )
            events.add(tuple(distribution.event_shape))
        expect(len(events) == 1, f"the event shape depends on the sample axes: {sorted(events)}")

    @check
    def test_examples_do_not_mix(self) -> None:
        """The log density of an example does not depend on the rest of its batch."""
        likelihood, output, y = self._case()
        together = likelihood.log_prob(output, y)
        for i in range(_BATCH):
            alone = likelihood.log_prob(output[i : i + 1], y[i : i + 1])
            same(alone, together[i : i + 1], f"example {i} has another log density alone")

    @check
    def test_draws_do_not_mix(self) -> None:
        """Sample axes in front of the batch are so many separate outputs."""
        likelihood, _, y = self._case()
        output = self._output(_DRAWS, 2)
        together = likelihood.log_prob(output, y, 2)
        mean = likelihood.expected(output, 2)
        for s in range(_DRAWS):
            for t in range(2):
                where = "with two sample axes in front is another one; count axes from the last?"
                alone = likelihood.log_prob(output[s, t], y)
                same(together[s, t], alone, f"the log density {where}")
                same(mean[s, t], likelihood.expected(output[s, t]), f"the mean {where}")

    @check
    def test_gradients(self) -> None:
        """Gradients of the log density pass torch's gradcheck, of output and parameters."""
        likelihood, output, y = self._case()
        names = [name for name, _ in likelihood.named_parameters()]
        start = [parameter.detach().clone() for parameter in likelihood.parameters()]

        def density(output: Tensor, *values: Tensor) -> Tensor:
            pure = _Density(likelihood, y)
            now = {f"likelihood.{name}": v for name, v in zip(names, values, strict=True)}
            found: Tensor = torch.func.functional_call(pure, now, (output,))
            return found

        points = tuple(point.clone().requires_grad_() for point in (output, *start))
        value = density(*points)
        expect(value.requires_grad, "the log density has no gradient: is something detached?")
        slopes = torch.autograd.grad(value.sum(), points, allow_unused=True)
        for name, slope in zip(("the output", *names), slopes, strict=True):
            expect(slope is not None, f"the log density does not depend on {name}")
        expect(
            torch.autograd.gradcheck(density, points, fast_mode=True, raise_exception=False),
            "the gradient of the log density is not that of the function: is something detached?",
        )

    @check
    def test_samples_follow_the_density(self) -> None:
        """The mean of the score over samples is 0, so samples are of the density."""
        likelihood = self._make()
        output = self._output()[:1].expand(_MANY, *self.out).clone().requires_grad_()
        with torch.no_grad():
            y = likelihood.distribution(output).sample()
        (score,) = torch.autograd.grad(likelihood.log_prob(output, y).sum(), output)
        _is_zero(score, "samples are not of the density: the mean of its slope over them")

    @check
    def test_means_are_those_of_samples(self) -> None:
        """``expected`` is the mean of samples, or the frequencies of classes."""
        likelihood = self._make()
        output = self._output()[:1].expand(_MANY, *self.out)
        distribution: Any = likelihood.distribution(output)
        y = distribution.sample()
        mean = likelihood.expected(output)
        while hasattr(distribution, "base_dist") and distribution.base_dist is not None:
            distribution = distribution.base_dist
        if isinstance(distribution, Categorical):
            y = torch.nn.functional.one_hot(y, mean.shape[-1])
        expect(
            mean.shape == y.shape,
            f"expected has shape {tuple(mean.shape)}, of samples it is {tuple(y.shape)}",
        )
        _is_zero((y - mean).detach(), "expected is not the mean of samples: the difference")

    # Data.

    @check
    def test_other_shapes_are_refused(self) -> None:
        """Data with an axis more, or another batch, raise a PyronormError."""
        likelihood, output, y = self._case()
        for wrong in (y[..., None], y[:-1], y[:1], y[None]):
            _refused(
                lambda wrong=wrong: likelihood.log_prob(output, wrong),
                f"y of shape {tuple(wrong.shape)} for an output of shape {tuple(output.shape)}",
            )

    @check
    def test_infinite_data_are_refused(self) -> None:
        """Infinite data raise a PyronormError."""
        likelihood, output, y = self._case()
        if not y.is_floating_point():
            raise SkipTest("data are integers")
        bad = y.clone()
        bad.view(-1)[-1] = math.inf
        _refused(lambda: likelihood.log_prob(output, bad), "infinite y")

    @check
    def test_missing_values_have_no_part(self) -> None:
        """An example whose values are missing has log density 0 and no gradient; the others theirs."""
        likelihood, output, y = self._case()
        missing = math.nan if y.is_floating_point() else likelihood.ignore_index
        if missing is None:
            raise SkipTest("classes are never missing: ignore_index is None")
        before = likelihood.log_prob(output, y)
        y = y.clone()
        y[1] = missing
        output = output.clone().requires_grad_()
        for what, found in (
            ("log_prob", likelihood.log_prob(output, y)),
            ("objective", _log_prob(*likelihood.objective(output, y))),
        ):
            kept = torch.arange(_BATCH) != 1
            message = f"{what}, with the values of example 1 missing"
            same(found[~kept], torch.zeros_like(found[~kept]), f"{message}, is not 0 for it")
            if likelihood.weights(y) is None or what == "log_prob":
                same(found[kept], before[kept], f"{message}, is another one for the others")
            (slope,) = torch.autograd.grad(found.sum(), output)
            expect(bool(slope.isfinite().all()), f"{message}, has gradients that are not finite")
            expect(bool((slope[1] == 0).all()), f"{message}, has a gradient for it")

    # Predictions.

    @check
    def test_predictions_are_mixtures(self) -> None:
        """Summaries are finite and of the data's shape; equal draws are as one."""
        likelihood, _, y = self._case()
        output = self._output(_DRAWS)
        found = likelihood.predict(output)
        for name in ("mean", "variance", "entropy", "mutual_information"):
            value = getattr(found, name)
            expect(bool(value.isfinite().all()), f"the prediction's {name} is not finite")
            expect(len(value) == _BATCH, f"the prediction's {name} has not one row per example")
            expect(not value.requires_grad, f"the prediction's {name} asks for gradients")
        expect(bool((found.variance >= 0).all()), "a predictive variance is negative")
        one, equal = (
            likelihood.predict(output[:1]),
            likelihood.predict(output[:1].expand(4, *output.shape[1:])),
        )
        same(equal.mean, one.mean, "the mean of equal draws is not that of one")
        same(equal.variance, one.variance, "the variance of equal draws is not that of one", 1e-6)
        information = equal.mutual_information.abs().max()
        expect(float(information) < 1e-3, "equal draws have mutual information with the data")
        density = torch.stack([likelihood.log_prob(o, y) for o in output])
        density = density.logsumexp(0).detach() - math.log(_DRAWS)
        same(found.log_prob(y), density, "the predictive density is not the mean over draws")
        nll = found.metrics(y)["nll"]
        expect(
            abs(nll + float(density.mean())) <= 1e-5 * (1 + abs(nll)),
            f"the metric nll is {nll:.6g} instead of {-float(density.mean()):.6g}",
        )

    @check
    def test_from_training_to_arviz(self) -> None:
        """A model with this likelihood trains, predicts, is evaluated and exported."""
        width = math.prod(self.out)
        network = nn.Sequential(
            nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, width), nn.Unflatten(1, self.out or (1,))
        )
        if not self.out:
            network.append(nn.Flatten(0))
        likelihood = self.make()
        model = NormalizationModel(convert(network), likelihood, num_data=8)
        guide = MeanField(model)
        x = torch.randn(8, 3)
        with torch.no_grad():
            y = model(x)
        before = {name: p.detach().clone() for name, p in likelihood.named_parameters()}
        fit(model, guide, (x, y), epochs=2, batch_size=4, progress=False, seed=0)
        for name, parameter in likelihood.named_parameters():
            expect(not torch.equal(parameter, before[name]), f"fit did not train {name}")
        expect(
            predict(model, guide, x, 3).sample(2).shape[1:] == y.shape, "samples have another shape"
        )
        expect("nll" in evaluate(model, guide, (x, y), 3), "evaluate gave no nll")
        to_arviz(model, guide, (x, y), 4, seed=0)

    # The module.

    @check
    def test_running_changes_nothing(self) -> None:
        """No call writes a parameter, a buffer or an attribute, or moves torch's generator."""
        likelihood, output, y = self._case()
        state = copy.deepcopy(likelihood.state_dict())
        attributes = dict(vars(likelihood))
        generator = torch.get_rng_state()
        likelihood.log_prob(output, y)
        likelihood.predict(output[None]).metrics(y)
        expect(
            torch.equal(torch.get_rng_state(), generator),
            "log_prob, predict or metrics drew from torch's generator: a likelihood is not random",
        )
        for name, value in likelihood.state_dict().items():
            expect(torch.equal(value, state[name]), f"a call wrote {name}")
        for name, value in vars(likelihood).items():
            expect(attributes.get(name) is value, f"a call wrote the attribute {name}")

    @check
    def test_state_is_in_the_state_dict(self) -> None:
        """A copy, and a new likelihood that loads the state, have the same log densities."""
        likelihood, output, y = self._case()
        with torch.no_grad():
            for parameter in likelihood.parameters():
                parameter.add_(0.1)
        density = likelihood.log_prob(output, y)
        same(copy.deepcopy(likelihood).log_prob(output, y), density, "a copy differs")
        loaded = self._make()
        loaded.load_state_dict(likelihood.state_dict())
        same(loaded.log_prob(output, y), density, "after load_state_dict the log density differs")

    @check
    def test_settings_make_it_anew(self) -> None:
        """Made of ``settings()`` and the state, as of a file, it has the same log densities."""
        likelihood, output, y = self._case()
        settings = likelihood.settings()
        if any(callable(value) for value in settings.values()):
            raise SkipTest("a setting is a function, which is in no file")
        with torch.no_grad():
            for parameter in likelihood.parameters():
                parameter.add_(0.1)
        made = type(likelihood)(**settings).double()
        made.load_state_dict(likelihood.state_dict())
        message = "made anew of its settings and state it has another log density"
        same(made.log_prob(output, y), likelihood.log_prob(output, y), message)

    @check
    def test_precision_follows_the_output(self) -> None:
        """In float32 and float64 the log density has the dtype of the output, with tensors moved."""
        for dtype in (torch.float32, torch.float64):
            likelihood = self.make().to(dtype)
            output = self._output().to(dtype)
            y = likelihood.distribution(output).sample()
            found = likelihood.log_prob(output, y).dtype
            expect(
                found == dtype,
                f"for an output of {dtype} the log density is {found}: is a tensor of settings no "
                "buffer, or a dtype fixed?",
            )

    def _make(self) -> Likelihood:
        likelihood = self.make()
        name = type(likelihood).__name__
        expect(
            isinstance(likelihood, Likelihood), f"make returned a {name}, which is no Likelihood"
        )
        return likelihood.double()

    def _output(self, *samples: int) -> Tensor:
        return torch.randn(*samples, _BATCH, *self.out, dtype=torch.float64)

    def _case(self) -> tuple[Likelihood, Tensor, Tensor]:
        """The likelihood, an output, and data that it would give."""
        likelihood, output = self._make(), self._output()
        with torch.no_grad():
            return likelihood, output, likelihood.distribution(output).sample()


class _Density(nn.Module):
    """The log density as a function of parameters."""

    def __init__(self, likelihood: Likelihood, y: Tensor) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.y = y

    def forward(self, output: Tensor) -> Tensor:
        return self.likelihood.log_prob(output, self.y)


def _log_prob(distribution: Any, y: Tensor) -> Tensor:
    value: Tensor = distribution.log_prob(y)
    return value


def _is_zero(values: Tensor, what: str) -> None:
    """Fail unless the mean over rows is 0, within six standard errors of each column."""
    values = values.reshape(len(values), -1)
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    far = (mean.abs() - 6 * error).argmax()
    expect(
        bool((mean.abs() <= 6 * error + 1e-9).all()),
        f"{what} is {float(mean[far]):.3g}, with a standard error of {float(error[far]):.3g}",
    )


def _refused(call: Any, what: str) -> None:
    with without_type_checks():
        try:
            call()
        except PyronormError:
            return
        except Exception as error:
            other = f"raised {type(error).__name__}: {error}"
        else:
            other = "was taken"
    raise AssertionError(f"{what} {other}, where a PyronormError is asked for")
