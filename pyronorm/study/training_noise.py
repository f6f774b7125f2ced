"""What noise in training is worth, in networks, beside dropout and ensembles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from pyronorm import guides
from pyronorm.checks import Count, Probability, check_fields
from pyronorm.errors import OptionError
from pyronorm.infer import collect_bank
from pyronorm.randomness import SeedNumber
from pyronorm.study.architectures import check_network
from pyronorm.study.checks import check_data, check_least, check_seeds
from pyronorm.study.images import load_images
from pyronorm.study.noise_networks import (
    BATCH,
    NORMALIZERS,
    NoiseNetworks,
    Way,
)
from pyronorm.study.settings import Training
from pyronorm.study.study import Job, Outcome, Place, Results, Section, Study
from pyronorm.study.table import Row
from pyronorm.study.training_noise_report import sections

__all__ = ["TrainingNoise", "TrainingNoiseSettings"]


@dataclass(frozen=True)
class TrainingNoiseSettings:
    """One network, trained plainly, with noise of several strengths and with dropout.

    Attributes:
        data: name of the data set.
        network: name of the network; it must take ``dropout``.
        noise: normalizers, ``batch``, ``weight``, ``analytic`` or ``group``, each with the values of
            ``n`` of the law in training; without noise each is there anyway.
        dropouts: rates of Monte-Carlo dropout, beside batch normalization.
        after: values of ``n`` of the law that is added to the plain network after training.
        members: plain networks with batch normalization in the largest ensemble.
        seeds: each has its own images, networks and batches.
        num_train: training images.
        num_validation: images held out of the training set, for temperatures, ``n`` and rates.
        num_test: test images; None for all.
        training: how networks are trained.
        num_samples: draws per prediction, or passes with dropout.
        statistics_batches: batches of 256 training images for the statistics of a draw; None for all.
    """

    data: str = "fashion-mnist"
    network: str = "lenet-5"
    noise: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("batch", (4.0, 8.0, 16.0, 32.0)),
        ("weight", (4.0, 8.0, 16.0, 32.0)),
    )
    dropouts: tuple[Probability, ...] = (0.05, 0.1, 0.2, 0.3)
    after: tuple[float, ...] = (16.0, 64.0)
    members: Count = 4
    seeds: tuple[SeedNumber, ...] = (0, 1, 2, 3, 4)
    num_train: Count | None = None
    num_validation: Count = 1_000
    num_test: Count | None = None
    training: Training = field(default_factory=lambda: Training(30, 32, 2e-3))
    num_samples: Count = 32
    statistics_batches: Count | None = 4

    def __post_init__(self) -> None:
        check_fields(self)
        check_data(self.data)
        check_network(self.network)
        check_seeds(self.seeds)
        names = [name for name, _ in self.noise]
        if len(set(names)) < len(names) or not set(names) <= set(NORMALIZERS):
            raise OptionError(
                f"study: noise must have different ones of {', '.join(NORMALIZERS)}, got "
                f"{', '.join(names)}."
            )
        sizes = (*itertools.chain(*(n for _, n in self.noise)), *self.after)
        if any(not n > 1 for n in sizes):
            raise OptionError(f"study: every n of noise must be above 1, got {min(sizes)}.")
        if not self.dropouts or min(self.dropouts) <= 0:
            raise OptionError("study: dropouts must be above 0, and at least one.")
        check_least("members", self.members, 2)


@dataclass(frozen=True)
class TrainingNoise(Study):
    """What one network trained under noise is worth, in plain networks of an ensemble.

    Each seed has its own training, validation and test images and its own ensemble. All methods of a
    seed share images, initial weights and order of batches. A temperature for each method, ``n`` and
    rates are chosen on the validation images of the seed; test images only judge.
    """

    title: ClassVar[str] = "What noise in training is worth"

    name: str
    settings: TrainingNoiseSettings

    def jobs(self) -> Sequence[Job]:
        """One for each way to train and seed; the plain one trains the whole ensemble."""
        return [Job(name, seed) for seed in self.settings.seeds for name in self._ways()]

    def _ways(self) -> dict[str, Way]:
        settings = self.settings
        plain = Way()
        found = [plain]
        for normalizer, sizes in settings.noise:
            found += [Way(normalizer), *(Way(normalizer, n) for n in sizes)]
        found += [Way(dropout=rate) for rate in settings.dropouts]
        return {way.name: way for way in found}

    def run(self, job: Job, place: Place) -> Outcome:
        """Train what the job's name says, and judge all that can be predicted with it."""
        settings, seed = self.settings, job.seed
        data = load_images(settings.data, seed, place)
        data, validation = data.split_off(settings.num_validation, seed)
        data = data.subset(settings.num_train, settings.num_test, seed)
        way = self._ways()[job.name]
        networks = NoiseNetworks(
            settings.network,
            settings.training,
            settings.num_samples,
            settings.statistics_batches,
            data=data,
            validation=validation,
            seed=seed,
            device=place.device,
        )
        made = self._ensemble(networks) if way == Way() else _single(networks, way)
        rows = [Row(name, seed, values, condition) for name, condition, values in made]
        return Outcome(rows, note=data.note)

    def sections(self, results: Results) -> Sequence[Section]:
        """Methods beside ensembles; every strength of noise."""
        return sections(self.settings, results)

    def _ensemble(self, networks: NoiseNetworks) -> Iterator[_Judged]:
        """Plain batch normalization: alone, with noise added after training, and in ensembles."""
        settings = self.settings
        members = [networks.train(Way(), member) for member in range(settings.members)]
        outputs = [networks.outputs(m.model, m.guide, 1) for m in members]
        first = members[0]
        seconds = {"train_seconds": first.seconds}
        yield BATCH, {}, networks.score(first.model, outputs[0]) | seconds
        bank = collect_bank(
            first.model,
            networks.data.train.x,
            settings.num_samples,
            settings.training.batch_size,
            seed=networks.seed,
        )
        posterior = guides.MonteCarloBatchNorm(first.model, bank)
        yield f"{BATCH}, own noise after training", {}, networks.judge(first, posterior) | seconds
        for n in settings.after:
            values = networks.judge(first, guides.BatchNoise(first.model, n)) | seconds
            yield f"{BATCH}, noise after training", {"level": n}, values
        for size in range(1, settings.members + 1):
            scores = [
                networks.score(first.model, torch.cat(chosen))
                for chosen in itertools.combinations(outputs, size)
            ]
            # The average over all ensembles of the size: that of one draws its members by chance.
            mean = {key: sum(s[key] for s in scores) / len(scores) for key in scores[0]}
            mean["train_seconds"] = size * first.seconds
            yield "ensemble", {"level": size}, mean


_Judged = tuple[str, Mapping[str, str | float], dict[str, float]]  # method, condition, values


def _single(networks: NoiseNetworks, way: Way) -> Iterator[_Judged]:
    """One network, with and without averaging over its noise."""
    condition = {"level": way.level} if way.level else {}
    for reading, values in networks.judge_way(way):
        yield way.method + reading, condition, values
