from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyronorm as pn
from pyronorm.errors import DataError, OptionError, StatisticsError
from pyronorm.guides import BatchNoise, MeanField, Point
from pyronorm.infer import Callback
from tests.nets import mlp, train_briefly

NUM_DATA = 48


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(NUM_DATA, 5, generator=torch.Generator().manual_seed(3))
    return x, (x[:, 0] > 0.3).long()


def make(norm=nn.BatchNorm1d, num_data=NUM_DATA) -> pn.NormalizationModel:
    torch.manual_seed(5)
    return pn.NormalizationModel(pn.convert(mlp(norm=norm)), pn.likelihoods.Categorical(), num_data)


def sgd(**options) -> pn.Optimization:
    return pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), **options)


def state(*modules: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def draws() -> tuple[float, float]:
    return np.random.rand(), float(torch.rand(()))  # noqa: NPY002 - beartype moves Python's own


def seed_everything() -> None:
    np.random.seed(9)  # noqa: NPY002
    torch.manual_seed(9)


def test_by_hand_is_fit():
    results = []
    for by_hand in (True, False):
        model = make()
        guide = MeanField(model)
        if by_hand:
            trainer = pn.Trainer(model, guide, data(), batch_size=16, lr=0.01, seed=4)
            epochs = [trainer.epoch() for _ in range(3)]
            trainer.update_statistics()
            assert trainer.history.epochs == epochs
            losses = trainer.history.losses
            assert (trainer.steps, trainer.epochs_done) == (9, 3.0)
        else:
            options = {"batch_size": 16, "lr": 0.01, "seed": 4, "progress": False}
            losses = pn.fit(model, guide, data(), epochs=3, **options).losses
        results.append((losses, state(model, guide)))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])


def test_between_epochs_everything_is_as_it_was():
    model = make()
    model.eval()
    model.network.network[2].train()
    modes = [m.training for m in model.modules()]
    guide = MeanField(model)
    trainer = pn.Trainer(model, guide, data(), seed=4, train_network=False)
    before = [p.requires_grad for p in model.parameters()]
    seed_everything()
    expected = draws()
    seed_everything()
    pn.estimate_population_statistics(model, data())
    trainer.epoch()
    assert draws() == expected
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == before


def test_statistics_are_stale_until_updated():
    model = make()
    trainer = pn.Trainer(model, Point(model), data())
    trainer.epoch()
    with pytest.raises(StatisticsError):
        pn.predict(model, trainer.guide, data()[0], 2)
    trainer.update_statistics()
    pn.predict(model, trainer.guide, data()[0], 2)
    assert trainer.run(3) is trainer.history
    assert len(trainer.history.epochs) == 3
    pn.predict(model, trainer.guide, data()[0], 2)


@pytest.mark.parametrize("shuffled_by", ["tensors", "torch", "generator"])
def test_validation_does_not_change_training(shuffled_by):
    results = []
    for validation in (None, pn.Validation(data(), num_samples=3)):
        model = make()
        guide = BatchNoise(model, 8)
        train: object = data()
        if shuffled_by != "tensors":
            generator = torch.Generator().manual_seed(1) if shuffled_by == "generator" else None
            train = DataLoader(
                TensorDataset(*data()), batch_size=16, shuffle=True, generator=generator
            )
        options = {"epochs": 3, "batch_size": 16, "seed": 3, "progress": False}
        pn.fit(model, guide, train, validation=validation, **options)
        results.append(state(model, guide))
    assert equal(*results)


def test_a_generator_as_seed():
    results = []
    for _ in range(2):
        model = make()
        generator = torch.Generator().manual_seed(8)
        pn.fit(model, MeanField(model), data(), epochs=1, seed=generator, progress=False)
        results.append(state(model))
    assert equal(*results)


def test_accumulated_gradients_are_those_of_the_joined_batch():
    """Group normalization: an example's gradient does not depend on its batch."""
    x, y = data()
    results = []
    for accumulate, batches in ((1, [(x, y)]), (3, list(zip(x.split(16), y.split(16))))):  # noqa: B905
        model = make(norm=lambda c: nn.GroupNorm(1, c))
        trainer = pn.Trainer(model, Point(model), batches, optimization=sgd(accumulate=accumulate))
        trainer.epoch()
        assert trainer.steps == 1
        results.append(state(model))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_rest_of_accumulated_batches_is_their_mean():
    x, y = data()
    batches = list(zip(x.split(16), y.split(16), strict=True))
    results = []
    for accumulate in (3, 5):
        model = make(norm=lambda c: nn.GroupNorm(1, c))
        pn.Trainer(model, Point(model), batches, optimization=sgd(accumulate=accumulate)).epoch()
        results.append(state(model))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_lbfgs_gets_a_closure_with_the_same_draws():
    model = make(norm=lambda c: nn.GroupNorm(1, c))
    x, y = data()
    optimization = pn.Optimization(
        optimizer=lambda groups: torch.optim.LBFGS(
            [p for group in groups for p in group["params"]], line_search_fn="strong_wolfe"
        )
    )
    guide = BatchNoise(model, 16)
    trainer = pn.Trainer(model, guide, [(x, y)], optimization=optimization, seed=1)
    losses = [trainer.epoch().loss for _ in range(3)]
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(OptionError, match="LBFGS evaluates the loss itself"):
        pn.Trainer(
            model,
            MeanField(model),
            [(x, y)],
            optimization=pn.Optimization(optimizer=optimization.optimizer, accumulate=2),
        )


class Sam(torch.optim.SGD):
    """Sharpness-aware minimization, as its users write it."""

    def step(self, closure):
        closure = torch.enable_grad()(closure)
        closure()
        moved = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    moved.append((p, 0.01 * p.grad))
                    p.data.add_(moved[-1][1])
        closure()
        for p, by in moved:
            p.data.sub_(by)
        super().step()


def test_an_optimizer_that_requires_a_closure():
    model = make()
    history = pn.fit(
        model,
        MeanField(model),
        data(),
        epochs=15,
        batch_size=16,
        optimization=pn.Optimization(optimizer=lambda groups: Sam(groups, lr=0.1)),
        progress=False,
    )
    assert history.losses[-1] < 0.8 * history.losses[0]


def test_schedulers_per_step_and_on_a_plateau():
    model = make()
    rates = []

    class Watch(Callback):
        def on_step_end(self, trainer):
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    halved = torch.optim.lr_scheduler.ExponentialLR
    pn.fit(
        model,
        Point(model),
        data(),
        epochs=2,
        batch_size=16,
        optimization=sgd(step_scheduler=lambda optimizer: halved(optimizer, 0.5)),
        callbacks=[Watch()],
        progress=False,
    )
    assert rates == pytest.approx([0.1 * 0.5**k for k in range(1, 7)])
    seen = []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)
            super().step(metrics)

    for validation in (pn.Validation(data()), None):
        seen.clear()
        history = pn.fit(
            model,
            Point(model),
            data(),
            epochs=2,
            optimization=sgd(scheduler=Plateau),
            validation=validation,
            progress=False,
        )
        expected = [e.loss if validation is None else e.validation_nll for e in history.epochs]
        assert seen == expected


class Recorder(Callback):
    def __init__(self):
        self.hooks = []

    def on_fit_start(self, trainer):
        self.hooks.append(("start", trainer.epochs))

    def on_step_end(self, trainer):
        self.hooks.append(("step", trainer.steps, trainer.loss > 0))

    def on_epoch_end(self, trainer):
        assert not torch.is_autocast_enabled("cpu")
        self.hooks.append(("epoch", trainer.history.epochs[-1].epoch))

    def on_fit_end(self, trainer):
        trainer.model.network.check_statistics()
        self.hooks.append(("end",))

    def on_exception(self, trainer, error):
        self.hooks.append((type(error).__name__,))


def test_callbacks_of_ones_own_and_of_the_fabric():
    model = make()
    ours, theirs = Recorder(), Recorder()
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[theirs])
    options = {"batch_size": 24, "progress": False, "callbacks": [ours], "fabric": fabric}
    pn.fit(model, Point(model), data(), epochs=2, **options)
    steps = [("step", k, True) for k in range(1, 5)]
    expected = [("start", 2), *steps[:2], ("epoch", 1), *steps[2:], ("epoch", 2), ("end",)]
    assert ours.hooks == theirs.hooks == expected


def test_without_what_fabric_wraps_around_it_training_is_the_same():
    found = []
    for callbacks in ([], [Recorder()]):
        seed_everything()
        model = make()
        guide = MeanField(model)
        fabric = Fabric(accelerator="cpu", devices=1, callbacks=callbacks)
        pn.fit(model, guide, data(), epochs=2, seed=0, progress=False, fabric=fabric)
        found.append(state(model, guide))
    assert equal(*found)


def test_a_callback_may_stop():
    class Stop(Callback):
        def on_epoch_end(self, trainer):
            if len(trainer.history.epochs) == 2:
                trainer.stop()

    model = make()
    history = pn.fit(model, Point(model), data(), epochs=9, callbacks=[Stop()], progress=False)
    assert len(history.epochs) == history.best_epoch == 2


def test_loggers_of_the_fabric_get_the_history(tmp_path):
    model = make()
    logger = CSVLogger(tmp_path, name="run")
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    history = pn.fit(model, Point(model), data(), epochs=2, fabric=fabric, progress=False)
    (written,) = tmp_path.rglob("metrics.csv")
    header, *rows = written.read_text().split()
    assert set(header.split(",")) == {
        *("epoch", "loss", "nll", "kl", "kl_weight", "lr", "seconds", "step")
    }
    column = header.split(",").index("loss")
    assert [float(row.split(",")[column]) for row in rows] == pytest.approx(history.losses)


def test_an_interruption_keeps_the_history_and_restores_the_best():
    model = make()
    guide = MeanField(model)
    recorder = Recorder()

    class Interrupt(Callback):
        def on_step_end(self, trainer):
            if trainer.steps == 12:
                raise KeyboardInterrupt

    trainer = pn.Trainer(
        model,
        guide,
        data(),
        batch_size=16,
        optimization=pn.Optimization(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05)),
        validation=pn.Validation(data()),
        callbacks=[pn.EarlyStopping(patience=5), Interrupt(), recorder],
        seed=0,
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run(20)
    assert len(trainer.history.epochs) == 3
    assert recorder.hooks[-1] == ("KeyboardInterrupt",)
    best = trainer.history.epochs[trainer.history.best_epoch - 1].validation_nll
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nll = pn.infer.predictive_nll(model, guide, data(), 8)  # current statistics, too
    assert nll == pytest.approx(best, rel=1e-5)


def test_parameters_that_are_not_finite_are_named():
    model = make(norm=lambda c: nn.GroupNorm(1, c))

    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            model.network.network[3].weight.data[0, 0] = torch.nan

    optimization = pn.Optimization(optimizer=lambda groups: Broken(groups, lr=0.1))
    with pytest.raises(DataError, match=r"network.network.3.weight has values that are not finite"):
        pn.fit(model, Point(model), [data()], epochs=1, optimization=optimization, progress=False)


def test_inputs_of_double_precision_are_cast():
    x, y = data()
    results = []
    for inputs in (x, x.double()):
        model = make()
        pn.fit(model, Point(model), (inputs, y), epochs=1, seed=1, progress=False)
        results.append(state(model))
    assert equal(*results)


def test_networks_that_override_train_are_told_of_their_mode():
    calls = []

    class Adapter(nn.Sequential):
        def train(self, mode=True):
            calls.append(mode)
            return super().train(mode)

    torch.manual_seed(0)
    network = pn.convert(Adapter(*mlp()))
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), NUM_DATA)
    pn.fit(model, Point(model), data(), epochs=1, progress=False)
    calls.clear()
    pn.predict(model, Point(model), data()[0], 2)
    assert calls[0] is False
    assert calls[-1] is True


def test_the_same_trainer_object_is_not_shared(unchecked):
    model = make()
    stopping = pn.EarlyStopping(patience=1)
    for _ in range(2):
        twin = copy.deepcopy(model)
        validation = pn.Validation(data())
        options = {"epochs": 2, "seed": 1, "progress": False, "validation": validation}
        history = pn.fit(twin, Point(twin), data(), callbacks=[stopping], **options)
        assert history.best_epoch > 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*data(), strict=True))


@pytest.mark.parametrize(
    "normalizer", [None, pn.normalizers.BatchWhitening(2), pn.normalizers.Ghost(16)]
)
@pytest.mark.parametrize("form", ["tensors", "loader", "stream"])
def test_a_rest_of_one_example_is_no_end(normalizer, form):
    """47 examples in batches of 23: the last one joins the second batch, in training and statistics."""
    x, y = (part[:47] for part in data())
    network = pn.convert(mlp(norm=nn.BatchNorm1d), normalizer)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), 47)
    train: object = (x, y)
    if form == "loader":
        train = DataLoader(TensorDataset(x, y), batch_size=23, shuffle=True)
    elif form == "stream":

        class Fewer(Stream):
            def __iter__(self):
                return iter(zip(x, y, strict=True))

        train = DataLoader(Fewer(), batch_size=23)
    trainer = pn.Trainer(model, Point(model), train, batch_size=23, lr=0.01)
    trainer.run(2)
    assert trainer.steps == 4
    if normalizer is None:
        hidden = network[0](x)
        torch.testing.assert_close(network[1].running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["stream", "stream in a loader"])
def test_streams_train_predict_and_fill_banks(form):
    model = make()
    guide = MeanField(model)
    stream = Stream() if form == "stream" else DataLoader(Stream(), batch_size=16)
    history = pn.fit(
        model,
        guide,
        stream,
        epochs=2,
        batch_size=16,
        validation=pn.Validation(stream),
        progress=False,
    )
    assert len(history.epochs) == 2
    assert pn.predict(model, guide, stream, 2).mean.shape == (NUM_DATA, 3)
    assert len(pn.collect_bank(model, stream, batch_size=16)) == 3


@pytest.mark.parametrize("form", ["tensors", "loader", "batches", "named target", "stream"])
def test_the_number_of_batches_is_no_number_of_examples(form):
    """Before anything is trained, where the data say how many there are; else after an epoch."""
    x, y = data()
    model = make(num_data=6)
    train: object = (x, y)
    if form == "loader":
        train = DataLoader(TensorDataset(x, y), batch_size=8)
    elif form == "batches":
        train = list(zip(x.split(8), y.split(8), strict=True))
    elif form == "named target":
        examples = [{"input": a, "label": b} for a, b in zip(x, y, strict=True)]
        train = pn.with_target(DataLoader(examples, batch_size=8), "label")
    elif form == "stream":
        train = DataLoader(Stream(), batch_size=8)
    before = state(model)
    with pytest.raises(OptionError, match=r"number of batches; the data have 48 examples"):
        pn.fit(model, Point(model), train, batch_size=8, progress=False)
    assert equal(before, state(model)) == (form != "stream")


def test_another_number_of_examples_is_said():
    model = make(num_data=100)
    with pytest.warns(UserWarning, match="num_data=100, but an epoch has 48 examples"):
        pn.Trainer(model, Point(model), data()).epoch()
    stream = DataLoader(Stream(), batch_size=8)
    with pytest.warns(UserWarning, match="num_data=100, but an epoch has 48 examples"):
        pn.fit(model, Point(model), stream, epochs=2, progress=False)
    batches = list(zip(*(part[:40].split(10) for part in data()), strict=True))
    pn.fit(make(num_data=48), Point(model), batches, epochs=1, progress=False)  # a rest was dropped


def test_a_bank_with_a_seed_leaves_the_generators_alone():
    model = make()
    pn.estimate_population_statistics(model, data())
    state = torch.get_rng_state()
    banks = [pn.collect_bank(model, data(), 4, 16, seed=3) for _ in range(2)]
    assert torch.equal(banks[0].mean, banks[1].mean)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(pn.collect_bank(model, data(), 4, 16, seed=4).mean, banks[0].mean)


def test_a_frozen_backbone_stays_as_it_is():
    """Frozen by its user: in evaluation mode, no trainable parameter; the head is trained."""
    torch.manual_seed(1)
    original = nn.Sequential(
        train_briefly(mlp(), (5,), steps=3), nn.BatchNorm1d(3), nn.Linear(3, 2)
    )
    network = pn.convert(original)
    backbone = network[0]
    backbone.requires_grad_(False).eval()
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), NUM_DATA)
    before = state(backbone)
    head = state(network[2])
    x, y = data()
    trainer = pn.Trainer(
        model, Point(model), (x, y), batch_size=16, lr=0.1, validation=pn.Validation((x, y))
    )
    trainer.run(2)
    assert equal(state(backbone), before)
    assert not equal(state(network[2]), head)
    hidden = backbone(x)  # in evaluation mode
    torch.testing.assert_close(network[1].running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    pn.predict(model, trainer.guide, x, 2)


def test_a_frozen_network_in_evaluation_mode_is_not_retrained():
    model = make()
    pn.estimate_population_statistics(model, data())
    model.network.requires_grad_(False).eval()
    before = state(model.network)
    pn.fit(model, MeanField(model), data(), epochs=1, progress=False)
    assert equal(state(model.network), before)
    model.network.check_statistics()


def test_a_frozen_part_without_statistics_is_refused():
    model = make()
    model.network.requires_grad_(False).eval()
    with pytest.raises(StatisticsError, match="1 is frozen, .* but has no population statistics"):
        pn.fit(model, MeanField(model), data(), epochs=1, progress=False)
