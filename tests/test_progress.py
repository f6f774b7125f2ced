"""Bars on a terminal that is none, and nothing where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import nn

import pyronorm as pn
from pyronorm import progress
from pyronorm.progress import progress_bar, silence

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] + torch.randn(48, generator=torch.Generator().manual_seed(2)) > 0).long()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(
        progress, "_console", lambda: Console(file=text, force_terminal=True, width=100)
    )
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    return text


@pytest.fixture(scope="module")
def model() -> pn.NormalizationModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    made = pn.NormalizationModel(pn.convert(network), pn.likelihoods.Categorical(), num_data=48)
    pn.fit(made, pn.guides.Point(made), (X, Y), epochs=20, lr=0.02, seed=0, progress=False)
    return made


Call = Callable[[pn.NormalizationModel, bool], object]
LONG: dict[str, Call] = {
    "predict": lambda m, p: pn.predict(m, pn.guides.BatchNoise(m, 9), X, progress=p),
    "evaluate": lambda m, p: pn.evaluate(m, pn.guides.Point(m), (X, Y), progress=p),
    "export": lambda m, p: pn.to_arviz(m, pn.guides.Point(m), (X, Y), 2, progress=p),
    "bank": lambda m, p: pn.collect_bank(m, X, 4, 16, progress=p),
    "population statistics": lambda m, p: pn.estimate_population_statistics(m, X, progress=p),
    "statistics of draws": lambda m, p: pn.refresh_draws(
        m, pn.guides.BatchNoise(m, 9), X, 2, progress=p
    ),
    "calibrate": lambda m, p: pn.calibrate(
        m, (X, Y), candidates={"noise": pn.guides.BatchNoise(m, 9)}, progress=p
    ),
    "curvature": lambda m, p: pn.collect_curvature(m, (X, Y), pn.guides.Point(m), progress=p),
    "Laplace": lambda m, p: pn.baselines.fit_laplace(m, (X, Y), progress=p),
    "chain 1": lambda m, p: pn.run_nuts(m, (X, Y), 4, 3, 1, max_tree_depth=1, seed=0, progress=p),
    "epoch 1/1": lambda m, p: pn.fit(
        m, pn.guides.MeanField(m), (X, Y), epochs=1, train_network=False, progress=p
    ),
}


@pytest.mark.parametrize("what", LONG)
def test_long_functions_show_a_bar_on_a_terminal_if_asked(
    model: pn.NormalizationModel, terminal: io.StringIO, what: str
) -> None:
    LONG[what](model, False)
    assert terminal.getvalue() == ""
    LONG[what](model, True)
    assert what in terminal.getvalue()


def test_nothing_without_a_terminal(
    model: pn.NormalizationModel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    for what in ("predict", "bank", "epoch 1/1", "chain 1"):
        LONG[what](model, True)
    assert capfd.readouterr() == ("", "")


def test_one_bar_at_a_time_and_none_in_silence(terminal: io.StringIO) -> None:
    with progress_bar("outer", 2) as outer:
        outer.advance()
        with progress_bar("inner", 2) as inner:
            inner.advance()
    with silence(), progress_bar("silent", 1) as bar:
        bar.advance()
    with progress_bar("again", 1) as bar:
        bar.advance("now this")
    assert "outer" in terminal.getvalue()
    assert "now this" in terminal.getvalue()
    assert not {"inner", "silent"} & set(terminal.getvalue().split())


def test_what_is_quick_shows_nothing(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_DELAY", 60.0)
    with progress_bar("quick", 1) as bar:
        bar.advance()
    assert terminal.getvalue() == ""


def test_a_bar_ends_with_an_error(terminal: io.StringIO) -> None:
    with pytest.raises(ValueError, match="x"), progress_bar("failing", 2) as bar:
        bar.advance()
        raise ValueError("x")
    with progress_bar("next", 1) as bar:
        bar.advance()
    assert "next" in terminal.getvalue()
