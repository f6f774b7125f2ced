"""What objects show: each class that shows itself is made once, its line and its table are read."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyronorm as pn
from pyronorm.display import LONGEST, briefly, html_table, in_line

D = pn.diagnostics
X, Y = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 2


class Parsed(HTMLParser):
    """Refuses tags that do not match; keeps the texts of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@functools.cache
def model() -> pn.NormalizationModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    made = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), num_data=60)
    pn.estimate_population_statistics(made, X)
    return made


@functools.cache
def bank() -> pn.StatisticsBank:
    return pn.collect_bank(model(), X, 30, 15, seed=0)


@functools.cache
def guide() -> pn.guides.MeanField:
    return pn.guides.MeanField(model())


def history() -> Any:
    return pn.fit(model(), guide(), (X, Y), epochs=2, train_network=False, progress=False, seed=0)


@functools.cache
def idata() -> Any:
    return pn.to_arviz(model(), guide(), (X, Y), 60, seed=0)


MADE: dict[str, Callable[[], Any]] = {
    "Draws": lambda: guide().draw(model(), 40),
    "LatentSpace": lambda: model().space,
    "StatisticsBank": bank,
    "EffectiveBatchSizes": lambda: bank().effective_batch_size(),
    "ConversionReport": lambda: pn.conversion_report(model().network.network),
    "Prediction": lambda: pn.predict(model(), guide(), X),
    "Intervals": lambda: pn.likelihoods.Normal().predict(torch.randn(4, 6, 1)).interval(),
    "Scores": lambda: model().likelihood.scores(torch.randn(4, 60, 2), Y),
    "History": history,
    "Evaluation": lambda: pn.evaluate(model(), guide(), (X, Y)),
    "LeaveOneOut": lambda: D.loo(idata()),
    "CalibratedPosterior": lambda: pn.calibrate(model(), (X, Y), candidates={}),
    "MeanField": guide,
    "LowRank": lambda: pn.guides.LowRank(model(), 2),
    "Mixture": lambda: pn.guides.Mixture(model(), 3),
    "BatchNoise": lambda: pn.guides.BatchNoise(model(), 16),
    "Fixed": lambda: pn.guides.Fixed(model(), pn.priors.BatchNoise(9)),
    "MonteCarloBatchNorm": lambda: pn.guides.MonteCarloBatchNorm(model(), bank()),
    "StochasticBatchNorm": lambda: pn.guides.StochasticBatchNorm(model(), bank()),
    "Flow": lambda: pn.guides.Flow(model()),
    "Moments": lambda: pn.stats.Moments(4, torch.zeros(9), torch.ones(9)),
    "ParetoK": lambda: D.pareto_k(idata()),
    "RiskCurve": lambda: D.selective_risk(torch.rand(9), torch.rand(9)),
    "BatchSizes": lambda: D.moment_batch_sizes(bank()),
    "Interval": lambda: D.moment_batch_sizes(bank()).layer_shift,
    "LawTest": lambda: D.noise_law_test(bank()),
    "RealizedNoises": lambda: D.realized_noise(model(), bank(), X),
    "NoiseSchedule": lambda: pn.NoiseSchedule(lambda epoch: 9 + epoch),
    "EarlyStopping": lambda: pn.EarlyStopping(3),
    "WeightSWAG": lambda: pn.baselines.WeightSWAG(
        model(), ("0.bias",), torch.zeros(5), torch.ones(5), torch.ones(5, 2)
    ),
}
WITHOUT_TABLE = {"NoiseSchedule", "EarlyStopping"}  # settings, without results
# Results of long studies and of other rooms' functions: their line is the helper's, tried above.
NOT_MADE = {
    "Agreement", "Calibration", "CrossFit", "Curvature", "Disturbance", "EnsembleCurve",
    "EnsembleEquivalent", "EstimationShift", "ImageData", "InputShape", "Jackknife",
    "LastLayerLaplace", "ModeGap", "Propagation", "Table", "TabularData", "Uniformity",
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_line_when_printed_and_a_table_in_a_notebook(name: str) -> None:
    shown = MADE[name]()
    assert type(shown).__name__ == name
    line = repr(shown)
    assert len(line) <= LONGEST
    assert "tensor(" not in line
    assert line.count("\n") <= 1
    if name not in WITHOUT_TABLE:
        assert Parsed(shown._repr_html_()).cells
        assert len(shown._repr_html_()) < 5000


def test_every_class_that_shows_itself_is_made_or_named() -> None:
    found = set()
    for info in pkgutil.walk_packages(pn.__path__, "pyronorm."):
        if any(part in info.name for part in (".study", ".testing", ".cli", ".plots")):
            continue
        module = importlib.import_module(info.name)
        for name, kind in vars(module).items():
            own = isinstance(kind, type) and kind.__module__ == module.__name__
            if own and name[0] != "_" and "_repr_html_" in vars(kind):
                found.add(name)
    found.discard("Guide")  # abstract
    assert found <= MADE.keys() | NOT_MADE, found - (MADE.keys() | NOT_MADE)
    assert found >= NOT_MADE, NOT_MADE - found


def test_texts_are_escaped_and_long_tables_cut() -> None:
    table = html_table("<b>", {"<i>": ["<u>&"] * 30})
    assert Parsed(table).cells == ["<i>"] + ["<u>&"] * 10
    assert "&lt;b&gt;" in table
    assert "30 rows in all" in table


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, "0.1235"),
        (None, "None"),
        (True, "True"),
        (torch.tensor(2.5), "2.5"),
        (torch.tensor([1.0, 2.0]), "[1, 2]"),
        (torch.zeros(3, 4), "3×4 values"),
        (np.zeros(7), "7 values"),
        ([1, 2, 3, 4], "[1, 2, 3, … 4 in all]"),
        ({"a": 1.5}, "{a: 1.5}"),
    ],
)
def test_values_are_brief(value: Any, expected: str) -> None:
    assert briefly(value) == expected


def test_a_line_has_an_end() -> None:
    assert len(in_line("Name", {f"key{i}": "text" for i in range(100)})) == LONGEST


def test_no_record_of_tensors_prints_them() -> None:
    raw = set()
    for info in pkgutil.iter_modules(pn.__path__):
        room = importlib.import_module(f"pyronorm.{info.name}")
        for name in getattr(room, "__all__", ()):
            kind = getattr(room, name)
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                made = inspect.unwrap(kind.__repr__).__code__.co_filename == "<string>"
                if made and any(
                    "Tensor" in str(f.type) for f in dataclasses.fields(kind) if f.repr
                ):
                    raw.add(name)
    assert not raw
