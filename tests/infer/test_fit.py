from __future__ import annotations

import pyro
import pytest
import torch
from lightning_fabric import Fabric
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

from pyronorm import (
    EarlyStopping,
    NormalizationModel,
    Objective,
    Optimization,
    Validation,
    convert,
    fit,
    predict,
    priors,
)
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.guides import BatchNoise, LowRank, MeanField, MonteCarloBatchNorm, Point
from pyronorm.infer import predictive_nll
from pyronorm.likelihoods import Categorical, Normal
from tests.guides.cases import make_bank
from tests.nets import mlp, train_briefly


def data(n: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 5)
    return x, (x[:, 0] > 0.3).long() + (x[:, 1] > 0).long()


def make(
    norm=nn.BatchNorm1d, likelihood=None, draws=1, num_data=96, prior=None
) -> NormalizationModel:
    likelihood = Categorical() if likelihood is None else likelihood
    prior = priors.BatchNoise(16) if prior is None else prior
    return NormalizationModel(convert(mlp(norm=norm)), likelihood, num_data, prior, draws)


def quiet(*args, **options):
    return fit(*args, progress=False, **options)


GUIDES = {
    "Point": Point,
    "BatchNoise": lambda m: BatchNoise(m, 32),
    "MeanField": MeanField,
    "LowRank": lambda m: LowRank(m, rank=2),
    "AutoNormal": AutoNormal,
    "AutoLowRank": lambda m: AutoLowRankMultivariateNormal(m, rank=2),
}


@pytest.mark.parametrize("name", GUIDES)
def test_learns_with_every_guide(name):
    model = make(num_data=400)
    guide = GUIDES[name](model)
    history = quiet(model, guide, data(400), epochs=40, lr=1e-2, batch_size=50)
    assert len(history.epochs) == history.best_epoch == 40
    assert history.losses[-1] < 0.8 * history.losses[0]
    x, y = data(200)
    accuracy = (predict(model, guide, x).mean.argmax(-1) == y).float().mean()
    assert accuracy > 0.8
    assert not list(pyro.get_param_store().keys())  # nothing global is left behind


def test_one_step_is_the_step_of_plain_torch():
    """Point guide, batch normalization, SGD: the same weights as an ordinary training step."""
    original = mlp()
    model = NormalizationModel(convert(original), Categorical(), 96)
    x, y = data()
    quiet(
        model,
        Point(model),
        [(x, y)],
        epochs=1,
        optimization=Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1)),
    )
    optimizer = torch.optim.SGD(original.parameters(), lr=0.1)
    nn.functional.cross_entropy(original(x), y).backward()
    optimizer.step()
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_population_statistics_are_estimated_at_the_end():
    model = make()
    x, y = data()
    quiet(model, Point(model), (x, y), epochs=1)
    layer = model.network.layers[0]
    hidden = model.network.network[0](x)
    torch.testing.assert_close(layer.running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    model.network.check_statistics()


def test_a_frozen_network_is_not_touched():
    original = train_briefly(mlp(), (5,), steps=3)
    model = NormalizationModel(convert(original), Normal(learned=True), 96)
    guide = MeanField(model)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    x, _ = data()
    flags = [m.training for m in model.modules()]
    quiet(model, guide, (x, torch.randn(96, 3)), epochs=2, train_network=False)
    assert all(torch.equal(before[k], v) for k, v in model.network.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert [m.training for m in model.modules()] == flags
    assert guide.shift_loc.abs().max() > 0
    assert model.likelihood.log_std != 0


def test_frozen_networks_run_in_evaluation_mode():
    original = train_briefly(mlp(), (5,), steps=3)
    original.insert(3, nn.Dropout(0.5))
    model = NormalizationModel(convert(original), Categorical(), 96)
    seen = []
    model.network.network[3].register_forward_hook(lambda m, a, y: seen.append(m.training))
    quiet(model, MeanField(model), data(), epochs=1, train_network=False)
    assert seen
    assert not any(seen)


def test_nothing_to_train_is_refused():
    model = NormalizationModel(convert(train_briefly(mlp(), (5,), steps=3)), Categorical(), 96)
    with pytest.raises(OptionError, match="there is nothing to train"):
        quiet(model, BatchNoise(model, 16), data(), train_network=False)
    with pytest.raises(OptionError, match="has no ELBO and cannot be trained"):
        quiet(model, MonteCarloBatchNorm(model, make_bank(model)), data())


def test_validation_and_early_stopping_restore_the_best_epoch():
    model = make(num_data=24)
    guide = MeanField(model)
    validation = data(40)
    history = quiet(
        model,
        guide,
        data(24),
        epochs=300,
        batch_size=24,
        lr=0.1,
        validation=Validation(validation, num_samples=64),
        callbacks=[EarlyStopping(patience=4)],
        seed=2,
    )
    scores = [epoch.validation_nll for epoch in history.epochs]
    assert len(scores) < 300
    assert history.best_epoch == 1 + scores.index(min(scores)) == len(scores) - 4
    nll = predictive_nll(model, guide, validation, 512)
    assert nll == pytest.approx(min(scores), rel=0.15)
    assert nll < scores[-1]


def test_learning_rate_schedule_and_kl_schedule():
    model = make()
    asked = []

    def weight(epoch: float) -> float:
        asked.append(epoch)
        return min(1.0, epoch / 2)

    history = quiet(
        model,
        MeanField(model),
        data(),
        epochs=3,
        batch_size=24,
        optimization=Optimization(
            scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
        ),
        objective=Objective(kl_weight=weight),
    )
    assert [e.lr for e in history.epochs] == pytest.approx([1e-3, 1e-4, 1e-5])
    assert asked == pytest.approx([e + s / 4 for e in range(3) for s in range(4)])
    assert [e.kl_weight for e in history.epochs] == pytest.approx([0.375, 0.875, 1.0])


def test_gradient_clipping_bounds_the_step():
    model = make()
    start = [p.detach().clone() for p in model.parameters()]
    x, y = data()
    quiet(
        model,
        Point(model),
        [(x, y)],
        epochs=1,
        optimization=Optimization(
            optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0), gradient_clip_norm=1e-3
        ),
    )
    moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), start, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_parameter_groups_have_names():
    model = make(likelihood=Normal(learned=True))
    names = []

    def optimizer(groups):
        names.extend(group["name"] for group in groups)
        return torch.optim.Adam(groups)

    x, _ = data()
    quiet(
        model,
        MeanField(model),
        (x, torch.randn(96, 3)),
        epochs=1,
        optimization=Optimization(optimizer=optimizer),
    )
    assert names == ["network", "likelihood", "guide"]


def test_the_same_seed_gives_the_same_result():
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = make(norm=lambda c: nn.GroupNorm(1, c), draws=4)
        guide = LowRank(model, rank=2)
        torch.seed()
        quiet(model, guide, data_fixed(), epochs=2, seed=7)
        results.append([p.detach().clone() for p in (*model.parameters(), *guide.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def data_fixed():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 5, generator=generator)
    return x, (x[:, 0] > 0.3).long()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(precision):
    model = make()
    x, y = data()
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    history = quiet(model, MeanField(model), (x, y), epochs=2, fabric=fabric)
    assert all(torch.isfinite(torch.tensor(history.losses)))
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert next(model.parameters()).dtype == dtype


def test_a_fabric_and_an_elbo_of_ones_own():
    model = make()
    fabric = Fabric(accelerator="cpu", devices=1)
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    history = quiet(
        model, MeanField(model), data(), epochs=2, fabric=fabric, objective=Objective(elbo=elbo)
    )
    assert len(history.epochs) == 2


def test_contradictions_and_bad_options_are_refused(unchecked):
    model = make()
    guide = MeanField(model)
    for name in ("epochs", "batch_size"):
        for bad in (0, 1.5, True):
            with pytest.raises(OptionError, match=f"fit: {name} must be at least 1, .*, got {bad}"):
                quiet(model, guide, data(), **{name: bad})
    with pytest.raises(OptionError, match="EarlyStopping: fit needs validation="):
        quiet(model, guide, data(), callbacks=[EarlyStopping(3)])
    with pytest.raises(OptionError, match="lr belongs to the default optimizer"):
        quiet(model, guide, data(), lr=0.1, optimization=Optimization(optimizer=torch.optim.SGD))
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="fit: lr must be a finite number above 0"):
            quiet(model, guide, data(), lr=bad)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (MeanField, "the class MeanField"),
        (lambda x, y: None, "got function"),
        (None, "got NoneType"),
        ("mean field", "got str"),
    ],
)
def test_what_is_no_guide_is_refused(wrong, named, unchecked):
    with pytest.raises(OptionError, match=f"guide must be a guide of pyronorm.guides.*{named}"):
        quiet(make(), wrong, data())


def test_a_function_as_guide_is_told_where_to_go(unchecked):
    with pytest.raises(OptionError, match=r"got function\. .*PyroModule .* pyro.infer.SVI"):
        quiet(make(), lambda x, y: None, data())


def test_objects_that_do_not_fit_are_named(unchecked):
    model = make()
    guide = MeanField(model)
    with pytest.raises(OptionError, match="guide must be a guide of pyronorm.guides"):
        quiet(model, model, data())
    with pytest.raises(OptionError, match="model must be a NormalizationModel, .*, got Sequential"):
        quiet(mlp(), guide, data())
    with pytest.raises(OptionError, match="validation must be a Validation, .*, got tuple"):
        quiet(model, guide, data(), validation=data())
    for name, bad, message in (
        ("optimization", torch.optim.SGD([torch.zeros(1)], 0.1), "got SGD"),
        ("optimization", pyro.optim.Adam({"lr": 0.1}), "got PyroOptim"),
        ("optimization", Optimization, "got the class Optimization"),
        ("callbacks", EarlyStopping(3), "a list of objects, .*, got EarlyStopping"),
        ("callbacks", [EarlyStopping], "got the class EarlyStopping"),
        ("fabric", "cpu", "a Lightning Fabric, .*, got 'cpu'"),
        ("fabric", Fabric, "a Lightning Fabric"),
        ("augment", 3, "a function of inputs and targets .*, got 3"),
        ("augment", lambda x: x, "a function of inputs and targets"),
        ("train_network", "no", "a bool, .*, got str"),
    ):
        with pytest.raises(OptionError, match=f"fit: {name} must be .*{message}"):
            quiet(model, guide, data(), **{name: bad})
    with pytest.raises(OptionError, match="what optimizer makes must be a Optimizer"):
        quiet(model, guide, data(), optimization=Optimization(optimizer=list))


@pytest.mark.parametrize("bad", ["no targets", "other lengths", "batches without"])
def test_validation_is_looked_at_before_training(bad):
    model = make()
    x, y = data()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = {"no targets": x, "other lengths": (x, y[:5]), "batches without": [x, x]}[bad]
    with pytest.raises((DataError, ShapeError), match="fit, validation: needs pairs|one length"):
        quiet(model, MeanField(model), (x, y), validation=Validation(found))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_bad_option_changes_nothing():
    """The statistics of a pretrained network are there until a step is taken."""
    original = train_briefly(mlp(), (5,), steps=3)
    model = NormalizationModel(convert(original), Categorical(), 96)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    broken = Objective(kl_weight=lambda epoch: -1.0)
    with pytest.raises(OptionError, match="kl_weight must be at least 0 and finite, got -1.0"):
        quiet(model, MeanField(model), data(), objective=broken)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model.network.check_statistics()


def test_bad_data_are_refused():
    model = make()
    x, y = data()
    with pytest.raises(DataError, match=r"pairs \(x, y\), got x alone"):
        quiet(model, Point(model), x)
    with pytest.raises(DataError, match="there is no batch|has no batch"):
        quiet(model, Point(model), [])
    bad = x.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(DataError, match="a batch with inputs that are not finite"):
        quiet(model, Point(model), (bad, y))


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro says so too
def test_divergence_is_named():
    model = make(norm=lambda c: nn.GroupNorm(2, c), likelihood=Normal())
    x, _ = data()
    with pytest.raises(DataError, match="Lower the learning rate"):
        quiet(
            model,
            Point(model),
            (x, 1e30 * torch.randn(96, 3)),
            epochs=50,
            optimization=Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=1e30)),
        )


def test_several_draws_per_batch_learn():
    model = make(norm=lambda c: nn.GroupNorm(1, c), draws=8)
    guide = MeanField(model)
    history = quiet(
        model,
        guide,
        data(),
        epochs=20,
        batch_size=24,
        lr=1e-2,
    )
    assert history.losses[-1] < 0.8 * history.losses[0]


def test_augment_changes_the_training_batches_and_nothing_else():
    """Training on augmented data; population statistics and validation on the data as they are."""
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    x, y = data()
    seen = []

    def doubled(batch: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(batch.clone())
        return 2 * batch, y

    sgd = Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    options = {"epochs": 2, "optimization": sgd}
    history = quiet(
        model, Point(model), [(x, y)], augment=doubled, validation=Validation((x, y)), **options
    )
    assert len(seen) == 2
    assert all(torch.equal(batch, x) for batch in seen)
    quiet(twin, Point(twin), [(2 * x, y)], **options)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    # The first layer sees inputs that were not doubled.
    layer = model.network.layers[0]
    hidden = model.network.network[0](x)
    torch.testing.assert_close(layer.running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    nll = predictive_nll(model, Point(model), (x, y), 2)
    assert history.epochs[-1].validation_nll == pytest.approx(nll, rel=1e-4)


@pytest.mark.parametrize(
    ("augment", "what"),
    [
        (lambda x, y: (x[1:], y), "inputs as it gets, 96, got 95"),
        (lambda x, y: (x.sum(), y), "inputs as it gets, 96, got Tensor"),
        (lambda x, y: (x, y[1:]), "targets as it gets, 96, got 95"),
        (lambda x, y: (x, [y]), "targets as it gets, 96, got list"),
    ],
)
def test_augment_has_to_keep_the_number_of_examples(augment, what, unchecked):
    model = make()
    with pytest.raises(ShapeError, match=f"augment must return as many {what}"):
        quiet(model, Point(model), [data()], epochs=1, augment=augment)


def test_augment_has_to_return_a_pair(unchecked):
    model = make()
    with pytest.raises(OptionError, match=r"augment\(x, y\) must return a pair .*, got Tensor"):
        quiet(model, Point(model), [data()], epochs=1, augment=lambda x, y: x)


def test_augment_may_mix_inputs_and_targets():
    model = make(likelihood=Normal(0.5))
    x, _ = data()
    seen = []

    def mixed(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        other = torch.randperm(len(x))
        seen.append(y)
        return (x + x[other]) / 2, (y + y[other]) / 2

    history = quiet(model, MeanField(model), (x, torch.randn(96, 3)), epochs=2, augment=mixed)
    assert len(seen) == len(history.epochs) == 2


def test_augment_has_to_give_finite_inputs():
    model = make()
    with pytest.raises(DataError, match="not finite"):
        quiet(model, Point(model), [data()], epochs=1, augment=lambda x, y: (x / 0, y))


def test_mixed_precision_is_in_the_network_alone() -> None:
    """Log densities of the latents keep their digits, and a GPU has no Cholesky in bfloat16."""
    seen: dict[str, set[bool]] = {"guide": set(), "prior": set(), "network": set()}

    class WatchedGuide(LowRank):
        def law(self):
            seen["guide"].add(torch.is_autocast_enabled("cpu"))
            return super().law()

    class WatchedPrior(priors.Standard):
        def law(self, space, like):
            seen["prior"].add(torch.is_autocast_enabled("cpu"))
            return super().law(space, like)

    model = make(prior=WatchedPrior(0.3, 0.3))
    model.network.network.register_forward_hook(
        lambda *_: seen["network"].add(torch.is_autocast_enabled("cpu"))
    )
    guide = WatchedGuide(model, rank=2)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    quiet(model, guide, data(), epochs=1, fabric=fabric)
    assert seen["guide"] == seen["prior"] == {False}
    assert True in seen["network"]
    assert not model.network._forward_pre_hooks
    assert not model.network._forward_hooks
