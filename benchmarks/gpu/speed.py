"""How fast is it: training steps eager, compiled and captured; prediction; a bank; peak memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import pyronorm as pn
from benchmarks.gpu import steps
from benchmarks.gpu.run import Part, Settings
from benchmarks.gpu.side_by_side import Maker, Table

_NUM_DATA = 50_000
_EPOCHS = 5  # of pn.fit


@dataclass(frozen=True)
class Size:
    """How large the cases are.

    Attributes:
        network: makes the network, with batch normalization.
        about: the network in words.
        batch: images per step where arithmetic dominates.
        small: images per step where launching kernels does.
        ghosts: images in a virtual batch.
        groups: channels whitened together.
        draws: draws of a prediction.
        images: images of the predictions.
        chunks: draws evaluated at once.
        rows: batches of a bank, and steps of an epoch of ``pn.fit``.
        repeats: calls between two looks at the clock.
        rounds: rounds, at most.
        set_up: seconds that a case needs.
    """

    network: Callable[[], nn.Module] = pn.networks.ResNet18
    about: str = "ResNet-18"
    batch: int = 512
    small: int = 64
    ghosts: int = 64
    groups: int = 16
    draws: int = 32
    images: tuple[int, ...] = (128, 512)
    chunks: tuple[int, ...] = (1, 4, 8, 16, 32)
    rows: int = 8
    repeats: int = 4
    rounds: int = 15
    set_up: float = 10.0


FULL = Size()
TINY = Size(
    partial(pn.networks.AllCNN, width=0.125),
    "All-CNN in small",
    batch=4,
    small=2,
    ghosts=2,
    groups=4,
    draws=3,
    images=(2,),
    chunks=(1, 2),
    rows=2,
    repeats=1,
    rounds=2,
    set_up=1.0,
)


def run(part: Part) -> None:
    """All tables, the ones that matter most first."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    size = TINY if part.settings.tiny else FULL
    cases = Cases(part.settings, size)
    part.note(f"{size.about}, 3x32x32, bfloat16, channels-last, SGD")
    if part.settings.cuda:
        part.case("copy on the device", partial(copied, part.settings))
    for batch in (size.batch, size.small):
        title = f"training step, {batch} images"
        table(part, title, size, cases.training_steps(batch))
        for name, make in {"point": pn.guides.Point, "mean-field": pn.guides.MeanField}.items():
            body = partial(compared, part, title, partial(cases.fit_step, make, batch))
            part.case(f"pn.fit, {name}", body, needs=size.set_up, table=title)
    for images, normalizer in product(size.images, ("batch", "group", "weight")):
        title = f"{size.draws} draws of {images} images, {normalizer}"
        table(part, title, size, cases.predictions(normalizer, images), long=True)
    title = f"{size.rows} batches of {size.images[0]} images"
    table(part, title, size, cases.passes(size.images[0]), long=True)
    title = f"normalizers with a mean-field guide, {size.batch} images"
    table(part, title, size, cases.normalizer_steps(size.batch))
    if part.settings.compiled:
        title = f"compiled training step, {size.batch} images"
        table(part, title, size, cases.compiled_steps(size.batch), compiling=True)


def table(
    part: Part,
    title: str,
    size: Size,
    makers: Mapping[str, Maker],
    *,
    long: bool = False,
    compiling: bool = False,
) -> None:
    """Time functions side by side; long calls are not repeated, and compiling takes its time."""
    needs = size.set_up * (6 if compiling else 1)
    Table(part, title, 1 if long else size.repeats, size.rounds, needs).time(makers)


def compared(part: Part, title: str, body: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A case that times itself, with the ratio to the first row of a table."""
    found = body()
    first = next((row for row in part.rows if row.get("table") == title), {})
    if "ms" in first:
        found["ratio"] = round(found["ms"] / first["ms"], 3)
    return found


def copied(settings: Settings) -> dict[str, float]:
    """Bytes read and written per second by a copy: what the memory can do."""
    source = torch.empty(2**28, device=settings.device)
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        target.copy_(source)
    start.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    seconds = start.elapsed_time(end) / 1e3 / 10
    return {"TB/s": round(2 * source.numel() * source.element_size() / seconds / 1e12, 3)}


class Cases:
    """What is timed, each case with a network of its own."""

    def __init__(self, settings: Settings, size: Size) -> None:
        self.settings, self.size, self.device = settings, size, settings.device
        most = max(size.batch, *size.images)
        x = torch.randn(most, 3, 32, 32, device=self.device)
        self.x = x.to(memory_format=torch.channels_last)
        self.y = torch.randint(10, (most,), device=self.device)
        self.normalizers: dict[str, pn.normalizers.Normalizer | None] = {
            "batch": None,
            "group": pn.normalizers.Group(4),
            "weight": pn.normalizers.Weight(),
            "analytic": pn.normalizers.Analytic(),
            "ghost": pn.normalizers.Ghost(size.ghosts),
            "whitening": pn.normalizers.BatchWhitening(size.groups),
        }

    def training_steps(self, batch: int) -> dict[str, Maker]:
        """Steps of the plain network and of guides, eager and captured."""
        makers: dict[str, Maker] = {"plain": partial(self.plain_step, batch)}
        makers["plain, captured"] = partial(self.plain_step, batch, captured=True)
        guides = {
            "point": pn.guides.Point,
            "mean-field": pn.guides.MeanField,
            "low-rank": pn.guides.LowRank,
        }
        for name, make in guides.items():
            makers[name] = partial(self.step, "batch", make, batch)
            makers[f"{name}, captured"] = partial(self.step, "batch", make, batch, captured=True)
        return makers

    def normalizer_steps(self, batch: int) -> dict[str, Maker]:
        """Steps with every normalizer."""
        makers: dict[str, Maker] = {"plain": partial(self.plain_step, batch)}
        make = pn.guides.MeanField
        for name in list(self.normalizers)[1:]:
            makers[name] = partial(self.step, name, make, batch)
            makers[f"{name}, captured"] = partial(self.step, name, make, batch, captured=True)
        return makers

    def compiled_steps(self, batch: int) -> dict[str, Maker]:
        """Steps with the network compiled, and captured where that goes."""
        makers: dict[str, Maker] = {
            "plain": partial(self.plain_step, batch),
            "plain, compiled, captured": partial(
                self.plain_step, batch, captured=True, compiled=True
            ),
        }
        for name in ("batch",) if self.settings.tiny else ("batch", "group", "weight"):
            makers[f"{name}, mean-field, compiled, captured"] = partial(
                self.step, name, pn.guides.MeanField, batch, captured=True, compiled=True
            )
        return makers

    def predictions(self, normalizer: str, images: int) -> dict[str, Maker]:
        """Predictions with draws, by how many are evaluated at once, against plain passes."""
        draws = self.size.draws
        makers: dict[str, Maker] = {f"{draws} plain passes": partial(self.plain_passes, images)}
        for chunk in (None, *self.size.chunks):
            name = "pn.predict" + ("" if chunk is None else f", {chunk} at once")
            makers[name] = partial(self.prediction, normalizer, images, chunk)
        makers[f"{draws} plain passes, bfloat16"] = partial(self.plain_passes, images, half=True)
        makers["pn.predict, bfloat16"] = partial(
            self.prediction, normalizer, images, None, half=True
        )
        return makers

    def passes(self, images: int) -> dict[str, Maker]:
        """Passes over batches of images that collect statistics."""
        batches = [self.x[:images]] * self.size.rows

        def plain() -> Callable[[], object]:
            network = self.network().train()

            @torch.no_grad()
            def run() -> None:
                for x in batches:
                    network(x)

            return run

        def bank() -> Callable[[], object]:
            model = self.model("batch")
            return lambda: pn.collect_bank(model, batches)

        def population() -> Callable[[], object]:
            model = self.model("batch")
            return lambda: pn.estimate_population_statistics(model, batches)

        return {
            "plain training passes": plain,
            "pn.collect_bank": bank,
            "pn.estimate_population_statistics": population,
        }

    def network(self) -> nn.Module:
        """The network, not converted."""
        network = self.size.network().to(self.device)
        return network.to(memory_format=torch.channels_last)

    def model(self, normalizer: str) -> pn.NormalizationModel:
        """The same, converted, with trusted statistics."""
        example = self.x[:2]
        network = pn.convert(self.network(), self.normalizers[normalizer], example_input=example)
        network.to(memory_format=torch.channels_last)
        pn.trust_statistics(network)
        return pn.NormalizationModel(network, pn.likelihoods.Categorical(), _NUM_DATA)

    def plain_step(
        self, batch: int, *, captured: bool = False, compiled: bool = False
    ) -> Callable[[], object]:
        """A step of the plain network."""
        network = self.network().train()
        loss = steps.plain_loss(network, self.device, compiled=compiled)
        return self._run(loss, steps.sgd(network), batch, captured)

    def step(
        self,
        normalizer: str,
        make: Callable[[pn.NormalizationModel], pn.guides.Guide],
        batch: int,
        *,
        captured: bool = False,
        compiled: bool = False,
    ) -> Callable[[], object]:
        """A step of a model and a guide."""
        model = self.model(normalizer).train()
        guide = make(model).to(self.device)
        loss = steps.elbo_loss(model, guide, self.device, compiled=compiled)
        return self._run(loss, steps.sgd(model, guide), batch, captured)

    def _run(
        self, loss: steps.LossFunction, optimizer: torch.optim.Optimizer, batch: int, captured: bool
    ) -> Callable[[], object]:
        x, y = self.x[:batch], self.y[:batch]
        if captured:
            return TimedStep(*steps.make_step(loss, optimizer, x, y), x, y)
        return TimedStep(steps.EagerStep(loss, optimizer, self.device), "", x, y)

    def fit_step(
        self, make: Callable[[pn.NormalizationModel], pn.guides.Guide], batch: int
    ) -> dict[str, Any]:
        """A step of ``pn.fit``, data on the device, from the seconds of its epochs."""
        model = self.model("batch")
        model.num_data = count = batch * self.size.rows
        repeats = -(-count // len(self.x))
        x = self.x.repeat(repeats, 1, 1, 1)[:count].to(memory_format=torch.channels_last)
        trainer = pn.Trainer(
            model,
            make(model),
            (x, self.y.repeat(repeats)[:count]),
            batch_size=batch,
            optimization=pn.Optimization(
                optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-4, momentum=0.9)
            ),
            fabric=steps.make_fabric(self.device, "bf16-mixed"),
        )
        trainer.epoch()  # checks the values of its batches
        epochs = 1 if self.settings.tiny else _EPOCHS
        seconds = [trainer.epoch().seconds for _ in range(epochs)]
        return {"ms": round(1e3 * statistics.median(seconds) / self.size.rows, 4)}

    def plain_passes(self, images: int, *, half: bool = False) -> Callable[[], object]:
        """As many passes of the plain network as there are draws."""
        network, x = self.network().eval(), self.x[:images]

        @torch.no_grad()
        def run() -> Tensor:
            with steps.mixed(self.device) if half else nullcontext():
                for _ in range(self.size.draws):
                    found = network(x).softmax(-1)
            return found

        return run

    def prediction(
        self, normalizer: str, images: int, chunk: int | None, *, half: bool = False
    ) -> Callable[[], object]:
        """A prediction with a mean-field guide."""
        model, x = self.model(normalizer), self.x[:images]
        model.network.samples_per_call = chunk
        guide = pn.guides.MeanField(model)

        def run() -> object:
            with steps.mixed(self.device) if half else nullcontext():
                return pn.predict(model, guide, x, self.size.draws, keep_samples=False)

        return run


class TimedStep:
    """A step on one batch, again and again."""

    def __init__(self, step: steps.Step, why_not: str, x: Tensor, y: Tensor) -> None:
        self.step, self.x, self.y = step, x, y
        self.about = {"not captured": why_not} if why_not else {}

    def __call__(self) -> Tensor:
        """Take the step."""
        return self.step(self.x, self.y)
