from __future__ import annotations

import sys

import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyronorm import NormalizationModel, convert, estimate_population_statistics, predict
from pyronorm.errors import DataError, StatisticsError
from pyronorm.guides import MeanField, MonteCarloBatchNorm
from pyronorm.infer import as_posterior, log_likelihoods, predictive_nll
from pyronorm.infer.predict import evaluate_draws
from pyronorm.likelihoods import Categorical, Normal
from tests.guides.cases import CASES, make_bank, make_guide, make_model
from tests.nets import SHAPES, conv_net, mlp, train_briefly


@pytest.mark.parametrize("case", CASES)
def test_mean_is_the_average_over_draws_in_evaluation_mode(case):
    model = make_model(draws=3)
    guide = make_guide(case, model)
    x = torch.randn(9, 5)
    torch.manual_seed(4)
    prediction = predict(model, guide, x, 6, batch_size=4)
    torch.manual_seed(4)
    draws = as_posterior(guide, "test").draw(model, 6)
    network = model.network.eval()
    logits = torch.stack([network(x, *z) for z in zip(draws.shift, draws.scale, strict=True)])
    model.train()
    samples = logits.softmax(-1)
    torch.testing.assert_close(prediction.samples, samples, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prediction.mean, samples.mean(0), rtol=1e-4, atol=1e-6)
    entropy = torch.special.entr(samples.mean(0)).sum(-1)
    torch.testing.assert_close(prediction.entropy, entropy, rtol=1e-4, atol=1e-6)
    expected = torch.special.entr(samples).sum(-1).mean(0)
    torch.testing.assert_close(
        prediction.mutual_information, entropy - expected, rtol=1e-3, atol=1e-5
    )


def test_equal_draws_are_evaluated_once(monkeypatch):
    model = make_model()
    seen = []
    forward = type(model.network).forward
    monkeypatch.setattr(
        type(model.network),
        "forward",
        lambda self, x, shift, scale: (seen.append(len(shift)), forward(self, x, shift, scale))[1],
    )
    x = torch.randn(5, 5)
    prediction = predict(model, make_guide("Point", model), x, 50)
    assert seen == [1, 1]  # the first to know how large outputs are
    assert prediction.samples.shape == (50, 5, 3)
    predict(model, MonteCarloBatchNorm(model, make_bank(model, rows=4)), x, 200)
    assert seen[-1] == 4


def test_the_same_draws_serve_all_batches():
    model = make_model()
    guide = make_guide("MeanField", model)
    x = torch.randn(9, 5)
    results = []
    for batch_size in (2, 9):
        torch.manual_seed(1)
        results.append(predict(model, guide, x, 5, batch_size=batch_size).samples)
    torch.testing.assert_close(results[0], results[1])


def test_nothing_is_changed():
    model = make_model().train()
    model.network.network[2].eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    predict(model, make_guide("LowRank", model), torch.randn(9, 5), 4)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_samples_need_not_be_kept():
    model = make_model()
    assert (
        predict(
            model, make_guide("MeanField", model), torch.randn(3, 5), 4, keep_samples=False
        ).samples
        is None
    )


def test_dense_outputs():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1))
    model = NormalizationModel(convert(network), Categorical(), 10)
    prediction = predict(model, make_guide("MeanField", model), torch.randn(5, 2, 4, 6), 7)
    assert prediction.mean.shape == (5, 4, 6, 3)
    assert prediction.entropy.shape == prediction.mutual_information.shape == (5, 4, 6)
    assert prediction.samples.shape == (7, 5, 4, 6, 3)


def test_regression_separates_noise_and_latents():
    model = NormalizationModel(convert(mlp(norm=lambda c: nn.GroupNorm(2, c))), Normal(0.3), 10)
    prediction = predict(model, make_guide("MeanField", model), torch.randn(5, 5), 7)
    epistemic = prediction.samples.var(0, correction=0)
    torch.testing.assert_close(prediction.variance, epistemic + 0.09)


def test_missing_and_stale_statistics_do_not_pass():
    model = make_model(network=mlp())
    with pytest.raises(StatisticsError, match="no population statistics"):
        predict(model, make_guide("Point", model), torch.randn(5, 5))
    model = make_model()
    with torch.no_grad():
        model.network.network[0].weight.add_(0.1)
    with pytest.raises(StatisticsError, match="stale"):
        predict(model, make_guide("Point", model), torch.randn(5, 5))


def test_log_likelihood_and_predictive_nll():
    model = make_model()
    guide = make_guide("MeanField", model)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    torch.manual_seed(2)
    draws = as_posterior(guide, "test").draw(model, 6)
    log_p = log_likelihoods(model, draws, (x, y), batch_size=4)
    torch.manual_seed(2)
    samples = predict(model, guide, x, 6).samples
    expected = samples.gather(-1, y.expand(6, -1)[..., None])[..., 0].log()
    torch.testing.assert_close(log_p, expected, rtol=1e-4, atol=1e-5)
    torch.manual_seed(2)
    nll = predictive_nll(model, guide, (x, y), 6)
    assert nll == pytest.approx(-expected.exp().mean(0).log().mean().item(), rel=1e-4)


def test_autoguides_and_loaders():
    model = make_model()
    guide = AutoNormal(model)
    x, y = torch.randn(9, 5), torch.randint(3, (9,))
    guide(x, y)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    assert predict(model, guide, loader, 3).mean.shape == (9, 3)


def test_bad_data_are_named():
    model = make_model()
    guide = make_guide("Point", model)
    x = torch.randn(9, 5)
    x[5, 1] = torch.nan
    with pytest.raises(DataError, match="batch 1 has inputs that are not finite"):
        predict(model, guide, x, batch_size=4)
    with pytest.raises(DataError, match="there is no batch"):
        predict(model, guide, [])
    draws = as_posterior(guide, "test").draw(model, 2)
    with pytest.raises(DataError, match="needs pairs"):
        log_likelihoods(model, draws, torch.randn(9, 5))


def test_large_and_small_batches_agree():
    """The choice between one draw at a time and several at once does not show in the result."""
    original = train_briefly(conv_net(2), (2, 5, 6), steps=2)
    model = NormalizationModel(convert(original), Categorical(), 50)
    guide = make_guide("MeanField", model)
    x = torch.randn(64, 2, 5, 6)
    results = []
    for samples_per_call in (None, 1, 50):
        model.network.samples_per_call = samples_per_call
        torch.manual_seed(1)
        results.append(predict(model, guide, x, 20).mean)
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-5)


def test_large_outputs_are_evaluated_in_parts(monkeypatch):
    network = conv_net(2)
    model = NormalizationModel(convert(network), Normal(), num_data=7)
    x = torch.randn(7, *SHAPES[2])
    estimate_population_statistics(model.network, x)
    guide = MeanField(model)
    whole = predict(model, guide, x, 5, seed=1)
    room = sys.modules["pyronorm.infer.predict"]  # the package has the function by this name
    monkeypatch.setattr(room, "_ELEMENTS", 2 * 5 * whole.outputs[0, 0].numel())
    parts = list(evaluate_draws([(model, guide.draw(model, 5, seed=1))], x))
    assert [len(batch.x) for batch, _ in parts] == [2, 2, 2, 1]
    found = predict(model, guide, x, 5, seed=1)
    torch.testing.assert_close(found.outputs, whole.outputs)
    torch.testing.assert_close(found.entropy, whole.entropy)
