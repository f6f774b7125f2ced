"""The posteriors that are judged."""

from __future__ import annotations

import pytest
import torch

from pyronorm import guides
from pyronorm.errors import OptionError
from pyronorm.study.reference import POSTERIORS, choose_posteriors, posteriors
from tests.guides.cases import make_bank, make_model


def test_every_guide_of_the_library_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "_SWAG_STEPS", 25)
    model = make_model()
    bank = make_bank(model)
    train = torch.randn(50, 5), torch.arange(50) % 3
    made = {name: c.make(model, bank, train) for name, c in POSTERIORS.items()}
    kinds = {type(posterior).__name__ for posterior in made.values()}
    own = set(guides.__all__) - {"Fixed", "StatisticsBank", "Curvature"}
    own -= {"Guide", "HyperGuide", "Laplace"}  # parts of others
    assert own <= kinds
    assert {"AutoMultivariateNormal", "AutoLowRankMultivariateNormal"} <= kinds
    assert made["low-rank-5"].factor.shape == (20, 5)
    assert made["bank-low-rank"].factor.shape == (20, 20)
    assert made["laplace-low-rank-20"].rank == 20
    assert made["laplace-full"].loc.any()
    assert not made["laplace-full-neutral"].loc.any()
    assert made["mean-field-neutral"].neutral
    mode = made["map"].loc
    assert 0 < (made["swag"].loc - mode).abs().max() < 1
    assert made["batch-size-channel"].batch_size.tolist() == pytest.approx([16.0] * 10)
    for name, posterior in made.items():
        if not name.startswith("auto"):
            trains = POSTERIORS[name].trained
            # A guide made of a bank has parameters, but is judged as it is made.
            assert not trains or list(posterior.parameters())


def test_choosing() -> None:
    assert [c.name for c in choose_posteriors()] == list(POSTERIORS)
    assert [c.name for c in choose_posteriors("flow, point,flow")] == ["flow", "point"]
    assert [c.name for c in choose_posteriors(["mcbn"])] == ["mcbn"]
    with pytest.raises(OptionError, match="no posterior 'mean-feild'. Did you mean 'mean-field'"):
        choose_posteriors("mean-feild")
    for none in ("", []):
        with pytest.raises(OptionError, match="at least one posterior"):
            choose_posteriors(none)
    assert not [name for name in POSTERIORS if set(name) & set(", ")]
