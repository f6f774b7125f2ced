"""Every guide, every prior and every kind of normalizer train together."""

from __future__ import annotations

import math

import pytest
import torch

from pyronorm import NormalizationModel, convert, fit, layers
from pyronorm.infer import draw_latents
from pyronorm.likelihoods import Categorical
from pyronorm.priors import BatchNoise, ScaleInvariant, Standard
from tests.guides.cases import CASES, make_guide
from tests.nets import mlp, train_briefly

PRIORS = {"BatchNoise": BatchNoise(16.0), "Standard": Standard(0.3, 0.3), "Flat": ScaleInvariant()}
NORMALIZERS = {
    "Batch": None,
    "Population": layers.Population(),
    "Ghost": layers.Ghost(8),
    "Group": layers.Group(2),
    "Layer": layers.Layer(),
    "RMS": layers.RMS(),
    "Weight": layers.Weight(),
    "Analytic": layers.Analytic(),
    "BatchWhitening": layers.BatchWhitening(2),
}


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_one_epoch(prior, normalizer):
    network = train_briefly(mlp(), (5,), steps=3)
    x = torch.randn(48, 5)
    y = (x[:, 0] > 0.3).long() + (x[:, 1] > 0).long()
    for case in CASES:
        needs_example = isinstance(normalizer, (layers.Analytic, layers.Weight))
        example = x if needs_example else None
        converted = convert(network, normalizer, example_input=example)
        model = NormalizationModel(converted, Categorical(), 48, prior)
        guide = make_guide(case, model)
        if not guide.has_density:
            continue
        before = [p.detach().clone() for p in guide.parameters()]
        history = fit(model, guide, (x, y), epochs=1, batch_size=24, progress=False)
        assert math.isfinite(history.losses[-1]), case
        for old, new in zip(before, guide.parameters(), strict=True):
            assert new.isfinite().all(), case
            assert not torch.equal(old, new), case
        draws = draw_latents(model, guide, 4)
        assert draws.shift.isfinite().all(), case
        assert (draws.scale > 0).all(), case
