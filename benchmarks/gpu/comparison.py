"""What comes out: guides against implicit batch noise on CIFAR-10."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pyronorm as pn
from benchmarks.gpu import images as cifar
from benchmarks.gpu import methods, steps
from benchmarks.gpu.images import Images, Standardize
from benchmarks.gpu.methods import FROM_BANK, IMPLICIT, METHODS, Method
from benchmarks.gpu.run import Part, Row, Settings, environment
from pyronorm.diagnostics import fit_temperature
from pyronorm.errors import DataError
from pyronorm.likelihoods import Prediction

_TINY = (96, 64)  # images for training and for testing


@dataclass(frozen=True)
class Recipe:
    """How a network is trained and judged.

    Attributes:
        epochs: passes over the training images.
        batch: images per step.
        rate: largest learning rate of AdamW, after a linear rise and before a cosine fall.
        decay: weight decay of the network; of the guide it is 0.
        rise: share of the steps in which the learning rate rises.
        warmup: share of the steps in which the weight of the KL divergence rises to 1.
        validation: images that are held out for the temperature.
        draws: of a prediction.
        rows: batches in the bank.
    """

    epochs: int
    batch: int = 256
    rate: float = 2e-3
    decay: float = 0.05
    rise: float = 0.1
    warmup: float = 0.3
    validation: int = 2500
    draws: int = 32
    rows: int = 128


def run(part: Part) -> None:
    """All methods with the first seed, then with the next one; what is done already is left alone."""
    settings = part.settings
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    recipe = Recipe(settings.epochs)
    if settings.tiny:
        recipe = replace(recipe, epochs=1, rate=1e-3, batch=32, validation=32, draws=3, rows=3)
    if settings.data:
        train, test, note = cifar.read_cifar10(settings.data)
    elif settings.tiny:
        train, test, note = cifar.synthetic(*_TINY)
    else:
        raise DataError(f"the comparison needs CIFAR-10: --data FOLDER, with {cifar.FORMS}")
    if settings.tiny:
        train, test = train[: _TINY[0]], test[: _TINY[1]]
        note += f"; the first {len(train)} and {len(test)} of them"
    part.note(note)
    data = Data(train.to(settings.device), test.to(settings.device), recipe)
    about = {
        "epochs": recipe.epochs,
        "images": len(data.train),
        **{key: environment(settings.device)[key] for key in ("device", "torch")},
    }
    _forget_halves(part)
    longest: dict[str, float] = {}
    for seed in settings.seeds:
        for network in settings.networks:
            for name, method in METHODS.items():
                what = f"{network}, {name}"
                row = part.case(
                    what,
                    partial(_case, part, data, network, name, method, seed, about),
                    needs=1.3 * longest.get(network, 0.0),
                    method=name,
                    network=network,
                    seed=seed,
                    **about,
                )
                if row is not None:
                    longest[network] = max(longest.get(network, 0.0), row["seconds"])


def _forget_halves(part: Part) -> None:
    """Forget networks with implicit noise whose bank was not judged to the end: they run again."""
    own = ("network", "seed", "epochs", "images", "device", "torch")
    judged: dict[tuple[Any, ...], set[str]] = {}
    for row in part.rows:
        if "method" in row:
            judged.setdefault(tuple(row[key] for key in own), set()).add(row["method"])
    part.rows = [
        row
        for row in part.rows
        if row.get("method") != IMPLICIT or judged[tuple(row[key] for key in own)] >= set(FROM_BANK)
    ]


class Data:
    """The images on the device, those for the temperature apart.

    Args:
        train: training images.
        test: test images.
        recipe: says how many are held out; the last ones, which the files have in random order.
    """

    def __init__(self, train: Images, test: Images, recipe: Recipe) -> None:
        self.recipe = recipe
        self.train = train[: len(train) - recipe.validation]
        self.validation = train[len(train) - recipe.validation :]
        self.test = test
        self.standardize = Standardize(self.train)

    def inputs(self, images: Images) -> Tensor:
        """All of some images, standardized."""
        return self.standardize(images.x)


def _case(
    part: Part,
    data: Data,
    network: str,
    name: str,
    method: Method,
    seed: int,
    about: Row,
) -> Row:
    """Train and judge; for the implicit posterior judge what comes of its bank as well."""
    model, guide, found = train(part.settings, data, network, method, seed)
    row = found | judge(model, guide, data, seed)
    if name == IMPLICIT:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data.train), generator=generator).to(part.settings.device)
        chosen = data.train[order[: data.recipe.rows * data.recipe.batch]]
        size = data.recipe.batch
        bank = pn.collect_bank(
            model, list(cifar.batches(chosen, data.standardize, size, data.recipe.rows))
        )
        row["bank s"] = round(time.perf_counter() - start, 2)
        for other, make in FROM_BANK.items():
            part.case(
                f"{network}, {other}",
                partial(_judge_bank, model, make, bank, data, seed),
                method=other,
                network=network,
                seed=seed,
                **about,
            )
    return row


def _judge_bank(
    model: pn.NormalizationModel, make: Any, bank: pn.StatisticsBank, data: Data, seed: int
) -> Row:
    return judge(model, make(model, bank), data, seed)


def train(
    settings: Settings, data: Data, network: str, method: Method, seed: int
) -> tuple[pn.NormalizationModel, pn.guides.Guide, Row]:
    """Train a network and a guide, forward and backward pass in a CUDA graph where that goes."""
    recipe, device = data.recipe, settings.device
    torch.manual_seed(seed)
    base = methods.make_network(network, tiny=settings.tiny).to(device)
    first = data.standardize(data.train.x[: recipe.batch])
    converted = pn.convert(base, method.normalizer, example_input=first[:2])
    if isinstance(method.normalizer, pn.normalizers.Weight):
        pn.data_dependent_start(converted, first)
    converted.to(memory_format=torch.channels_last)
    model = pn.NormalizationModel(
        converted, pn.likelihoods.Categorical(), len(data.train), method.prior
    ).train()
    guide = method.guide(model).to(device)
    groups = [{"params": steps.parameters(model), "weight_decay": recipe.decay}]
    if steps.parameters(guide):
        groups.append({"params": steps.parameters(guide), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, fused=settings.cuda)
    loss = steps.elbo_loss(model, guide, device)
    step, why_not = steps.make_step(loss, optimizer, first, data.train.y[: recipe.batch])
    settings.synchronize()
    start = time.perf_counter()
    # Of their own, so that all guides see the same images in the same order.
    generator = own_generator(device, seed)
    augment = pn.datasets.PadCropFlip(generator=generator)
    for done, (x, y) in enumerate(_shuffled(data, recipe.epochs, generator)):
        total = recipe.epochs * (len(data.train) // recipe.batch)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _shape(done / total, recipe.rise)
        step.kl_weight.fill_(min(1.0, done / (recipe.warmup * total)))
        value = step(*augment(data.standardize(x), y))
    settings.synchronize()
    seconds = time.perf_counter() - start
    if not math.isfinite(value.item()):
        raise DataError(f"training diverged: the last loss is {value.item()}")
    if method.normalizer is None:
        size = 4 * recipe.batch if not settings.tiny else recipe.batch
        batches = list(cifar.batches(data.train, data.standardize, size, 20))
        pn.estimate_population_statistics(model, batches)
    model.eval()
    found: Row = {"loss": value.item(), "train s": round(seconds, 2)}
    return model, guide, found | ({"not captured": why_not} if why_not else {})


def own_generator(device: torch.device, seed: int) -> torch.Generator | None:
    """A generator on a device, apart from torch's own."""
    return torch.Generator(device).manual_seed(seed)


def _shuffled(
    data: Data, epochs: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Bytes and classes of full batches, in a new order in each epoch."""
    size, device = data.recipe.batch, data.train.y.device
    for _ in range(epochs):
        order = torch.randperm(len(data.train), generator=generator, device=device)
        for start in range(0, len(order) - size + 1, size):
            some = data.train[order[start : start + size]]
            yield some.x, some.y


def _shape(done: float, rise: float) -> float:
    """Of the learning rate: a linear rise and half a cosine."""
    return min(1.0, (done + 1e-3) / rise) * 0.5 * (1 + math.cos(math.pi * done))


def judge(
    model: pn.NormalizationModel, guide: pn.guides.Guide, data: Data, seed: int
) -> dict[str, Any]:
    """Metrics on the test images, as they are and at the temperature that the validation images set."""
    count = 1 if guide.is_point else data.recipe.draws
    torch.manual_seed(seed)
    held_out = pn.predict(model, guide, data.inputs(data.validation), count)
    start = time.perf_counter()
    found = pn.predict(model, guide, data.inputs(data.test), count)
    metrics = pn.diagnostics.classification_metrics(found.mean, data.test.y)
    seconds = time.perf_counter() - start
    wrong = (found.mean.argmax(-1) != data.test.y).double()
    return {
        **metrics,
        "aurc": pn.diagnostics.selective_risk(found.entropy.double(), wrong).aurc,
        "predict s": round(seconds, 2),
        **_calibrated(held_out, found, data),
    }


def _calibrated(held_out: Prediction, found: Prediction, data: Data) -> Row:
    """NLL at the temperature that is best for the validation images, where those determine one."""
    try:
        temperature = fit_temperature(held_out, data.validation.y)
    except DataError as error:
        return {"no temperature": str(error)}
    mean = found.tempered(temperature).mean
    nll = pn.diagnostics.classification_metrics(mean, data.test.y)["nll"]
    return {"temperature": temperature, "calibrated nll": nll}
