"""A question of your own as a study: jobs that resume, tables with significance, one report page.

Does the rate of label noise decide which posterior predicts best? Run with
``python examples/own_study.py`` (about 20 seconds on two cores); run it again, and nothing is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from lightning_fabric import Fabric

import pyronorm as pn
from pyronorm import study


@dataclass(frozen=True)
class LabelNoiseSettings:
    """Everything that decides the outcome; a folder never mixes two of these."""

    rates: tuple[float, ...] = (0.0, 0.3)
    seeds: tuple[int, ...] = (0, 1)
    epochs: int = 3


@dataclass(frozen=True)
class LabelNoise(study.Study):
    """One job per rate and seed: a training, judged with two posteriors."""

    title: ClassVar[str] = "Posteriors under label noise"

    name: str
    settings: LabelNoiseSettings

    def jobs(self) -> Sequence[study.Job]:
        """All jobs; each can run in a process of its own."""
        settings = self.settings
        return [study.Job(f"rate={r}", seed) for seed in settings.seeds for r in settings.rates]

    def run(self, job: study.Job, place: study.Place) -> study.Outcome:
        """Run one job; the runner has seeded the generators with the job's seed."""
        rate = float(job.name.removeprefix("rate="))
        data = pn.datasets.load("digits", job.seed)
        x, y = data.train
        wrong = torch.rand(len(y)) < rate
        y = torch.where(wrong, torch.randint(10, y.shape), y)
        model = pn.NormalizationModel(
            pn.convert(pn.networks.SmallConvNet()), pn.likelihoods.Categorical(), num_data=len(y)
        )
        point = pn.guides.Point(model)
        pn.fit(
            model,
            point,
            (x, y),
            epochs=self.settings.epochs,
            batch_size=64,
            lr=5e-3,
            fabric=Fabric(accelerator=place.device, devices=1),
            progress=False,
        )
        noise = pn.guides.MonteCarloBatchNorm(model, pn.collect_bank(model, x, 32, 64))
        rows = [
            study.Row(name, job.seed, pn.evaluate(model, guide, tuple(data.test)), {"rate": rate})
            for name, guide in (("point", point), ("batch noise", noise))
        ]
        return study.Outcome(rows)

    def sections(self, results: study.Results) -> Sequence[study.Section]:
        """The report: a table here; plots are functions that draw into a figure."""
        columns = study.columns("accuracy", "nll", "ece")
        table = study.Table(
            "Digits", results.rows, columns, by=("rate", "method"), within=("rate",)
        )
        return [study.Section("Results", "Does averaging over batch noise help more?", [table])]


if __name__ == "__main__":
    question = LabelNoise("label-noise", LabelNoiseSettings())
    folder = Path("results") / f"label-noise-{question.fingerprint()}"
    found = study.run_study(question, folder, command="python examples/own_study.py")
    (table,) = question.sections(found)[0].tables
    for line in study.format_table(table).lines:
        print(*(f"{cell:>14}" for cell in line))
    print("Report:", study.write_report(question, folder))
