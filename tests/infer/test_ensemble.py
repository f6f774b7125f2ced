from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyronorm import NormalizationModel, convert, predict_ensemble
from pyronorm.errors import DataError, OptionError
from pyronorm.guides import BatchNoise, Point
from pyronorm.infer import draw_latents, ensemble_nll, predictive_nll
from pyronorm.likelihoods import Categorical, Normal
from tests.guides.cases import make_bank, make_guide, make_model
from tests.nets import mlp, train_briefly


def members():
    first, second, third = make_model(), make_model(), make_model()
    return [
        (first, BatchNoise(first, make_bank(first))),
        (second, BatchNoise(second, make_bank(second))),
        (third, make_guide("MeanField", third)),
    ]


def test_it_is_the_mixture_of_the_members():
    ensemble = members()
    x = torch.randn(9, 5)
    torch.manual_seed(2)
    together = predict_ensemble(ensemble, x, 7, batch_size=4)
    torch.manual_seed(2)
    draws = [draw_latents(model, guide, 7) for model, guide in ensemble]
    alone = []
    for (model, _), mine in zip(ensemble, draws, strict=True):
        network = model.network.eval()
        logits = [network(x, *z) for z in zip(mine.shift, mine.scale, strict=True)]
        alone.append(torch.stack(logits).softmax(-1))
    torch.testing.assert_close(together.samples, torch.cat(alone), rtol=1e-4, atol=1e-6)
    mean = torch.stack([p.mean(0) for p in alone]).mean(0)
    torch.testing.assert_close(together.mean, mean, rtol=1e-4, atol=1e-6)
    # I(y; member, draw) = I(y; member) + mean of I(y; draw | member)
    entropy = [torch.special.entr(p.mean(0)).sum(-1) for p in alone]
    total = torch.special.entr(mean).sum(-1)
    between = total - torch.stack(entropy).mean(0)
    within = [
        h - torch.special.entr(p).sum(-1).mean(0) for h, p in zip(entropy, alone, strict=True)
    ]
    torch.testing.assert_close(together.entropy, total, rtol=1e-4, atol=1e-6)
    information = between + torch.stack(within).mean(0)
    torch.testing.assert_close(together.mutual_information, information, rtol=1e-3, atol=1e-5)
    assert predict_ensemble(ensemble, x, 2, keep_samples=False).samples is None


def test_one_member_is_prediction_as_ever():
    model, guide = members()[0]
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    values = []
    for nll in (
        lambda: ensemble_nll([(model, guide)], (x, y), 6),
        lambda: predictive_nll(model, guide, (x, y), 6),
    ):
        torch.manual_seed(4)
        values.append(nll())
    assert values[0] == pytest.approx(values[1])


def test_the_density_of_points_is_the_mean_of_the_members_densities():
    models = [make_model().eval() for _ in range(3)]
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    p = torch.stack([m.network(x).softmax(-1)[torch.arange(9), y] for m in models]).mean(0)
    found = ensemble_nll([(m, Point(m)) for m in models], (x, y), 1, batch_size=4)
    assert found == pytest.approx(-p.log().mean().item(), rel=1e-5)


def test_members_see_the_same_batch_of_a_loader_that_shuffles():
    model, other = make_model(), make_model()
    other.load_state_dict(model.state_dict())
    x = torch.randn(20, 5)
    loader = DataLoader(TensorDataset(x), batch_size=6, shuffle=True)
    found = predict_ensemble([(model, Point(model)), (other, Point(other))], loader, 1)
    torch.testing.assert_close(found.samples[0], found.samples[1])
    assert found.mutual_information.max() < 1e-6


def test_modes_and_parameters_are_left_alone():
    ensemble = members()
    ensemble[0][0].train()
    ensemble[1][0].eval()
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model, _ in ensemble]
    predict_ensemble(ensemble, torch.randn(4, 5), 3)
    assert (ensemble[0][0].training, ensemble[1][0].training) == (True, False)
    for (model, _), state in zip(ensemble, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_errors():
    ensemble = members()
    x = torch.randn(4, 5)
    with pytest.raises(OptionError, match="at least one pair"):
        predict_ensemble([], x)
    network = convert(train_briefly(mlp(), (5,), steps=3))
    regression = [NormalizationModel(network, Normal(std), 50) for std in (1.0, 2.0)]
    mixed = [ensemble[0], (regression[0], Point(regression[0]))]
    with pytest.raises(OptionError, match=r"likelihood of member 1 \(Normal\) is not that of memb"):
        predict_ensemble(mixed, x)
    with pytest.raises(OptionError, match="a learned noise has to be shared or fixed"):
        predict_ensemble([(m, Point(m)) for m in regression], x)
    with pytest.raises(DataError, match="no batch"):
        predict_ensemble(ensemble, [])
    with pytest.raises(DataError, match="needs pairs"):
        ensemble_nll(ensemble, x)
    assert isinstance(ensemble[0][0].likelihood, Categorical)
