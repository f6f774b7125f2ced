"""Whatever draws takes a seed, a generator or None, and leaves the user's generators as they were."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm import baselines, datasets, diagnostics, infer
from pyronorm.datasets import splits
from pyronorm.infer.data import as_batches, inputs
from pyronorm.infer.ensemble import draw_members
from pyronorm.infer.predict import draws_for
from pyronorm.infer.refresh import refresh_draws
from tests.guides.cases import make_bank, make_model
from tests.infer.test_posterior import dropout

# What these do is tried by a case of their callers.
INNER = {
    "Generators.__init__",
    "TrainingBatches.__init__",
    "density_sum",
    "export_pyro",
    "mixture_samples",
    "seed_value",
    "seeded",
    "Posterior.draw",  # the protocol
}


def takes_a_seed() -> set[str]:
    """Public functions and methods of the library with a parameter of that name."""
    found = set()
    for info in pkgutil.walk_packages(pn.__path__, "pyronorm."):
        if info.name.split(".")[1] in ("study", "testing", "cli"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            named = {name: thing}
            if inspect.isclass(thing):
                named = {f"{name}.{key}": value for key, value in vars(thing).items()}
            for full, value in named.items():
                own = full.rpartition(".")[2]
                if (
                    inspect.isfunction(value)
                    and (own == "__init__" or not own.startswith("_"))
                    and "seed" in inspect.signature(value).parameters
                ):
                    found.add(full)
    return found


@pytest.fixture(scope="module")
def t() -> SimpleNamespace:
    """What the cases share; made here, so that they draw nothing else than they are asked to."""
    torch.manual_seed(0)
    model = make_model()
    x, y = torch.randn(32, 5), torch.randint(3, (32,))
    prior = pn.priors.Standard(0.1, 0.1)
    exact = pn.NormalizationModel(model.network, model.likelihood, 32, prior)
    guide = pn.guides.MeanField(model)

    def part(n):
        return datasets.Split(torch.rand(n, 1, 2, 2), torch.arange(n) % 2)

    curvature = pn.collect_curvature(exact, (x, y), at=pn.guides.Point(exact))
    return SimpleNamespace(
        model=model,
        exact=exact,
        curvature=curvature,
        diagonal=pn.guides.DiagonalLaplace.from_curvature(exact, curvature),
        members=[pn.predict(model, guide, x, 3, seed=i) for i in range(4)],
        pictures=torch.rand(2, 1, 8, 8),
        x=x,
        y=y,
        guide=guide,
        flow=pn.guides.Flow(model),
        bank=make_bank(model),
        draws=guide.draw(model, 9),
        prediction=pn.predict(model, guide, x, 3),
        laplace=baselines.fit_laplace(model, (x, y)),
        dropout=dropout(),
        a=torch.randn(20, 4, dtype=torch.float64),
        b=torch.randn(30, 4, dtype=torch.float64),
        values=torch.randn(40),
        classes=torch.arange(40) % 4,
        images=datasets.ImageData("test", part(40), part(20), 2, ("a", "b")),
        table=datasets.Table(
            "test", torch.randn(40, 2).double(), torch.randn(40).double(), ("a", "b"), "y"
        ),
    )


def trained(t, seed, trainer=False):
    model = copy.deepcopy(t.model)
    model.num_data = len(t.x)
    guide = pn.guides.MeanField(model)
    data = (t.x, t.y)
    if trainer:
        pn.Trainer(model, guide, data, batch_size=8, seed=seed).epoch()
    else:
        pn.fit(model, guide, data, epochs=1, batch_size=8, seed=seed, progress=False)
    return guide.shift_loc


def of_weights(t):
    """A Gaussian of the weights of the last layer."""
    names = tuple(n for n, _ in t.model.network.named_parameters())[-1:]
    mean = torch.cat(
        [dict(t.model.network.named_parameters())[n].detach().flatten() for n in names]
    )
    return baselines.WeightSWAG(t.model, names, mean, mean.square(), torch.ones(len(mean), 2))


def weights_of(networks):
    return [[*model.network.parameters()][-1][0].item() for model, _ in networks.members]


def calibrated(t, seed):
    def fit(x, y):
        return pn.guides.MeanField(t.exact)

    calibrate = diagnostics.simulation_based_calibration
    return calibrate(t.exact, t.x, fit, 3, 9, seed=seed).shift


def exported(t, seed):
    idata = pn.to_arviz(t.model, t.guide, (t.x, t.y), 3, seed=seed)
    return torch.from_numpy(idata["posterior"]["shift"].values)


def chosen(t, seed):
    y = t.prediction.sample(1, seed=5)[0]  # the network's own classes: a temperature near 1
    found = diagnostics.calibrate(
        t.model, (t.x, y), candidates={"learned": t.guide}, num_samples=3, num_folds=2, seed=seed
    )
    return [candidate.nll for candidate in found.candidates]


CASES = {
    "fit": trained,
    "Trainer.__init__": lambda t, s: trained(t, s, trainer=True),
    "predict": lambda t, s: pn.predict(t.model, t.guide, t.x, 3, seed=s).mean,
    "evaluate": lambda t, s: pn.evaluate(t.model, t.guide, (t.x, t.y), 3, seed=s)["nll"],
    "predictive_nll": lambda t, s: infer.predictive_nll(t.model, t.guide, (t.x, t.y), 3, seed=s),
    "log_likelihoods": lambda t, s: infer.log_likelihoods(t.model, t.guide, (t.x, t.y), 3, seed=s),
    "to_arviz": exported,
    "refresh_draws": lambda t, s: (
        refresh_draws(t.model, t.guide, t.x, 3, batch_size=8, seed=s).shift
    ),
    "draws_for": lambda t, s: draws_for(t.model, t.guide, 3, t.x, s, "test")[0][1].shift,
    "draw_members": lambda t, s: draw_members(t.model, t.guide, 3, t.x, s)[0][1].shift,
    "Guide.draw": lambda t, s: t.guide.draw(t.model, 3, seed=s).scale,
    "Guide.kl": lambda t, s: t.flow.kl(t.model.prior, 5, seed=s),
    "PyroGuide.draw": lambda t, s: pn.PyroGuide(t.guide).draw(t.model, 3, seed=s).shift,
    "Ensemble.draw": lambda t, s: pn.Ensemble([(t.model, t.guide)]).draw(t.model, 3, seed=s).shift,
    "Ensemble.draw_each": lambda t, s: (
        pn.Ensemble([(t.model, t.guide)]).draw_each(t.model, 3, seed=s)[0][1].shift
    ),
    "Prior.draws": lambda t, s: t.exact.prior.draws(t.exact, 3, seed=s).shift,
    "Prediction.sample": lambda t, s: t.prediction.sample(4, seed=s),
    "run_nuts": lambda t, s: (
        pn.run_nuts(t.exact, (t.x, t.y), 4, 2, 1, max_tree_depth=2, seed=s, progress=False).shift
    ),
    "collect_bank": lambda t, s: pn.collect_bank(t.model, t.x, 3, 8, seed=s).mean,
    "as_batches": lambda t, s: next(iter(as_batches(t.x, 8, shuffle=True, seed=s)))[0],
    "inputs": lambda t, s: next(inputs(t.x, t.model.network, 8, shuffle=True, seed=s)),
    "predict_dropout": lambda t, s: baselines.predict_dropout(t.dropout, t.x, 4, seed=s).mean,
    "LastLayerLaplace.predict": lambda t, s: t.laplace.predict(t.x, 4, seed=s).mean,
    "simulation_based_calibration": calibrated,
    "calibrate": chosen,
    "moment_batch_sizes": lambda t, s: (
        diagnostics.moment_batch_sizes(t.bank, seed=s).layer_shift.low
    ),
    "normalization_disturbance": lambda t, s: (
        diagnostics.normalization_disturbance(t.model, t.x, [8], num_draws=2, seed=s)[0].output
    ),
    "learn_noise": lambda t, s: pn.learn_noise(
        t.model, (t.x, t.y), epochs=1, num_draws=2, seed=s
    ).batch_size.detach(),
    "realized_noise": lambda t, s: (
        diagnostics.realized_noise(t.model, t.guide, t.x, 4, seed=s)[0].nominal
    ),
    "ensemble_curve": lambda t, s: (
        diagnostics.ensemble_curve(t.members, t.y, subsets=2, folds=2, seed=s).nll
    ),
    "predict_linearized": lambda t, s: (
        pn.predict_linearized(t.exact, t.diagonal, t.x, 3, seed=s).mean
    ),
    "choose_prior_precision": lambda t, s: infer.choose_prior_precision(
        t.exact, pn.guides.DiagonalLaplace, t.curvature, (t.x, t.y), [1.0], num_samples=3, seed=s
    ).median()["shift"],
    "corrupt": lambda t, s: datasets.corrupt(t.pictures, "gaussian_noise", 3, seed=s),
    "mode_gap": lambda t, s: diagnostics.mode_gap(t.model, (t.x, t.y), 8, seed=s).batch_loss,
    "input_shape": lambda t, s: diagnostics.input_shape(t.model, t.x, 8, seed=s).skewness.double(),
    "sliced_wasserstein": lambda t, s: diagnostics.sliced_wasserstein(t.a, t.b, 5, seed=s),
    "compare_draws": lambda t, s: (
        diagnostics.compare_draws(t.a, t.b, num_directions=5, seed=s).sliced_wasserstein
    ),
    "choose": lambda t, s: splits.choose(t.values, 9, s)[0],
    "choose_stratified": lambda t, s: splits.choose_stratified(t.classes, 9, s)[0],
    "ImageData.subset": lambda t, s: t.images.subset(9, 9, s).train.x,
    "ImageData.split_off": lambda t, s: t.images.split_off(9, s)[1].x,
    "Table.split": lambda t, s: t.table.split(s).train.y,
    "TabularData.split_off": lambda t, s: t.table.split(1).split_off(9, s)[1].x,
    "load_digits": lambda t, s: datasets.bundled.load_digits(s).train.y,
    "load": lambda t, s: datasets.load("digits", seed=s).train.y,
    "load_table": lambda t, s: datasets.load_table("iris", s).train.x,
    "WeightSWAG.draw_weights": lambda t, s: of_weights(t).draw_weights(3, seed=s),
    "WeightSWAG.draw_networks": lambda t, s: weights_of(
        of_weights(t).draw_networks(t.x, 2, seed=s)
    ),
    # nothing in these is random
    "Draws.draw": lambda t, s: t.draws.draw(t.model, 3, seed=s).shift,
    "StatisticsBank.draw": lambda t, s: t.bank.draw(t.model, 3, seed=s).shift,
}
NOT_RANDOM = {"Draws.draw", "StatisticsBank.draw", "choose_prior_precision"}  # one to choose from


def test_every_public_function_with_a_seed_is_tried():
    assert takes_a_seed() - INNER == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_everything_that_draws_takes_a_seed_or_a_generator(t, name):
    """It repeats, differs between seeds, and leaves the user's generator as it was."""

    def draw(seed):
        return torch.as_tensor(CASES[name](t, seed)).detach()

    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, other = draw(3), draw(3), draw(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (name in NOT_RANDOM)
    generator = torch.Generator().manual_seed(7)
    found = [draw(generator), draw(generator.manual_seed(7))]
    assert torch.equal(*found)
    assert torch.equal(torch.get_rng_state(), before)


WITHOUT = {
    "convert": lambda t: pn.convert(Scaled()),
    "conversion_report": lambda t: pn.conversion_report(t.model.network.network),
    "estimate_population_statistics": lambda t: pn.estimate_population_statistics(
        copy.deepcopy(t.model), t.x
    ),
    "standardize_latents": lambda t: pn.standardize_latents(copy.deepcopy(t.model), t.x),
    "entropy": lambda t: t.prediction.entropy,
    "metrics": lambda t: t.prediction.metrics(t.y),
    "fit_laplace": lambda t: baselines.fit_laplace(t.model, (t.x, t.y)),
    "noise_law_test": lambda t: diagnostics.noise_law_test(t.bank),
    "estimation_shift": lambda t: diagnostics.estimation_shift(t.model, t.x),
    "predict, a point": lambda t: pn.predict(t.model, pn.guides.Point(t.model), t.x),
    "median": lambda t: t.guide.median(),
}


class Scaled(nn.Sequential):
    """A network with a layer that convert has to try on random inputs."""

    def __init__(self):
        class RMSLayerNorm(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(4))

            def forward(self, x):
                return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

        with torch.random.fork_rng():
            super().__init__(nn.Linear(3, 4), RMSLayerNorm())


@pytest.mark.parametrize("name", WITHOUT)
def test_what_takes_no_seed_draws_nothing(t, name):
    before = torch.get_rng_state()
    WITHOUT[name](t)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_other_device_is_seeded():
    """torch.manual_seed seeds all devices, whose generators are the user's."""
    root = Path(pn.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "torch.manual_seed(" in path.read_text()
        and path.relative_to(root).parts[0] not in ("study", "testing")
    }
    # there all devices are put back
    assert found == {"diagnostics/simulation.py"}
