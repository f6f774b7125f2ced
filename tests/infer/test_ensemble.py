from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyronorm import Ensemble, NormalizationModel, convert, predict, to_arviz
from pyronorm.errors import DataError, OptionError, ShapeError
from pyronorm.guides import MonteCarloBatchNorm, Point
from pyronorm.infer import predictive_nll
from pyronorm.likelihoods import Categorical, Normal
from tests.guides.cases import make_bank, make_guide, make_model
from tests.nets import mlp, train_briefly


def members():
    first, second, third = make_model(), make_model(), make_model()
    return [
        (first, MonteCarloBatchNorm(first, make_bank(first))),
        (second, MonteCarloBatchNorm(second, make_bank(second))),
        (third, make_guide("MeanField", third)),
    ]


def test_it_is_the_mixture_of_the_members():
    ensemble = Ensemble(members())
    x = torch.randn(9, 5)
    together = predict(ensemble.model, ensemble, x, 7, batch_size=4, seed=2)
    alone = []
    for model, mine in ensemble.draw_each(ensemble.model, 7, seed=2):
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
    assert predict(ensemble.model, ensemble, x, 2, keep_samples=False).samples is None


def test_one_member_is_prediction_as_ever():
    model, guide = members()[0]
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    together = predictive_nll(model, Ensemble([(model, guide)]), (x, y), 6, seed=4)
    assert together == pytest.approx(predictive_nll(model, guide, (x, y), 6, seed=4))


def test_the_density_of_points_is_the_mean_of_the_members_densities():
    models = [make_model().eval() for _ in range(3)]
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    p = torch.stack([m.network(x).softmax(-1)[torch.arange(9), y] for m in models]).mean(0)
    ensemble = Ensemble((m, Point(m)) for m in models)
    found = predictive_nll(ensemble.model, ensemble, (x, y), 1, batch_size=4)
    assert found == pytest.approx(-p.log().mean().item(), rel=1e-5)


def test_members_see_the_same_batch_of_a_loader_that_shuffles():
    model, other = make_model(), make_model()
    other.load_state_dict(model.state_dict())
    x = torch.randn(20, 5)
    loader = DataLoader(TensorDataset(x), batch_size=6, shuffle=True)
    found = predict(model, Ensemble([(model, Point(model)), (other, Point(other))]), loader, 1)
    torch.testing.assert_close(found.samples[0], found.samples[1])
    assert found.mutual_information.max() < 1e-6


def test_modes_and_parameters_are_left_alone():
    ensemble = members()
    ensemble[0][0].train()
    ensemble[1][0].eval()
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model, _ in ensemble]
    predict(ensemble[0][0], Ensemble(ensemble), torch.randn(4, 5), 3)
    assert (ensemble[0][0].training, ensemble[1][0].training) == (True, False)
    for (model, _), state in zip(ensemble, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_export_has_a_chain_for_each_member():
    ensemble = Ensemble(members())
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    idata = to_arviz(ensemble.model, ensemble, (x, y), 4, seed=1)
    assert dict(idata["posterior"].sizes)["chain"] == 3
    draws = ensemble.draw_each(ensemble.model, 4, seed=1)
    shift = torch.stack([mine.shift for _, mine in draws])
    torch.testing.assert_close(torch.from_numpy(idata["posterior"]["shift"].values), shift)
    for k, (model, mine) in enumerate(draws):
        logits = model.network.eval()(x, mine.shift[2], mine.scale[2])
        expected = -torch.nn.functional.cross_entropy(logits, y, reduction="none")
        found = torch.from_numpy(idata["log_likelihood"]["y"].values[k, 2].copy())
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_networks_with_other_latents_predict_but_do_not_join():
    first = make_model()
    other = NormalizationModel(
        convert(train_briefly(mlp(hidden=4), (5,), steps=3)), Categorical(), 50
    )
    ensemble = Ensemble([(first, Point(first)), (other, Point(other))])
    x = torch.randn(4, 5)
    each = [m.network.eval()(x).softmax(-1) for m in (first, other)]
    torch.testing.assert_close(predict(first, ensemble, x, 1).mean, sum(each) / 2)
    with pytest.raises(ShapeError, match="different channels"):
        ensemble.draw(first, 1)


def test_errors():
    pairs = members()
    x = torch.randn(4, 5)
    with pytest.raises(OptionError, match="at least one pair"):
        Ensemble([])
    with pytest.raises(OptionError, match="member 1 must be a pair"):
        Ensemble([pairs[0], pairs[1][0]])
    with pytest.raises(OptionError, match="member 0: expected a posterior"):
        Ensemble([(pairs[0][0], "mean field")])
    network = convert(train_briefly(mlp(), (5,), steps=3))
    regression = [NormalizationModel(network, Normal(std), 50) for std in (1.0, 2.0)]
    mixed = [pairs[0], (regression[0], Point(regression[0]))]
    with pytest.raises(OptionError, match=r"likelihood of member 1 \(Normal\) is not that of memb"):
        Ensemble(mixed)
    with pytest.raises(OptionError, match="a learned noise has to be shared or fixed"):
        Ensemble([(m, Point(m)) for m in regression])
    ensemble = Ensemble(pairs)
    with pytest.raises(OptionError, match=r"none of the ensemble's; give one of its own"):
        predict(make_model(), ensemble, x)
    with pytest.raises(DataError, match="no batch"):
        predict(ensemble.model, ensemble, [])
    with pytest.raises(DataError, match="needs pairs"):
        predictive_nll(ensemble.model, ensemble, x)
    assert isinstance(pairs[0][0].likelihood, Categorical)
    assert repr(ensemble).startswith("Ensemble(3 networks with ")
