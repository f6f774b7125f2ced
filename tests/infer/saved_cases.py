"""Models with posteriors of every kind, to save here and load in another process."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pyronorm as pn
from pyronorm import guides, likelihoods, priors
from tests.normalizers import cases

NORMALIZERS = {
    "own" if name == "Batch" else name: value for name, value in cases.NORMALIZERS.items()
}
LIKELIHOODS = {
    "Categorical": (likelihoods.Categorical, 3),
    "Categorical.weight": (
        lambda: likelihoods.Categorical(weight=torch.tensor([1.0, 2.0, 0.5]), ignore_index=-1),
        3,
    ),
    "Bernoulli": (likelihoods.Bernoulli, 2),
    "Normal": (lambda: likelihoods.Normal(0.3), 2),
    "Normal.learned": (lambda: likelihoods.Normal(torch.tensor([0.3, 2.0]), learned=True), 2),
    "HeteroscedasticNormal": (lambda: likelihoods.HeteroscedasticNormal(min_std=0.1), 2),
    "StudentT": (lambda: likelihoods.StudentT(5.0, 0.4, learned=True), 2),
    "Poisson": (likelihoods.Poisson, 2),
    "NegativeBinomial": (lambda: likelihoods.NegativeBinomial(3.0, learned=True), 2),
    "MultivariateNormal": (
        lambda: likelihoods.MultivariateNormal(
            torch.tensor([0.3, 0.4]), torch.tensor([[0.1], [0.2]])
        ),
        2,
    ),
    "Ordinal": (lambda: likelihoods.Ordinal(4), 1),
}
GUIDES = {
    "Point": guides.Point,
    "EffectiveBatchSize": lambda m: guides.EffectiveBatchSize(m, 16.0, per="network"),
    "BatchNoise": lambda m: guides.BatchNoise(m, 16.0),
    "Fixed": lambda m: guides.Fixed(m, priors.Standard(0.3, 0.2)),
    "MeanField": guides.MeanField,
    "MeanField.neutral": lambda m: guides.MeanField(m, neutral=True),
    "LowRank": lambda m: guides.LowRank(m, rank=3),
    "Paired": guides.Paired,
    "Flow": guides.Flow,
    "PopulationStatistics": lambda m: guides.PopulationStatistics(m, 30),
    "MonteCarloBatchNorm": lambda m: guides.MonteCarloBatchNorm(m, bank(m)),
    "StochasticBatchNorm": lambda m: guides.StochasticBatchNorm(m, bank(m)),
    "LowRank.from_bank": lambda m: guides.LowRank.from_bank(m, bank(m), rank=3),
    "bank": lambda m: bank(m),
    "draws": lambda m: guides.MeanField(m).draw(m, 12),
    "none": lambda m: None,
}
PRIORS = {
    "None": None,
    "BatchNoise": priors.BatchNoise(16),
    "ScaleInvariant": priors.ScaleInvariant(),
    "Hierarchical": priors.HierarchicalBatchNoise(32, 2.0, per=pn.latents.Per.LAYER),
}


def make_network(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6 * 9, outputs),
    )


def bank(model: pn.NormalizationModel) -> pn.StatisticsBank:
    network = model.network
    mean, std = network.reference_statistics()
    mean, std = mean.nan_to_num(nan=0.0), std.nan_to_num(nan=1.0)
    c = network.space.num_channels
    eps = torch.full((c,), 1e-5)
    return pn.StatisticsBank(
        space=network.space,
        batch_size=16,
        mean=mean + std * 0.1 * torch.randn(12, c),
        var=std.square() * torch.exp(0.3 * torch.randn(12, c)),
        reference_mean=mean,
        reference_var=std.square() - eps,
        eps=eps,
    )


def make(normalizer: str, likelihood: str, guide: str, prior: str = "None"):
    kind, outputs = LIKELIHOODS[likelihood]
    network = make_network(outputs)
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(16, 2, 5, 5) + 1)
    network = pn.convert(network, NORMALIZERS[normalizer], example_input=torch.zeros(2, 2, 5, 5))
    pn.trust_statistics(network)
    model = pn.NormalizationModel(network, kind(), 50, PRIORS[prior])
    posterior = GUIDES[guide](model)
    with torch.no_grad():  # as if trained: every parameter is somewhere
        for module in (network, model.likelihood, posterior):
            for parameter in module.parameters() if isinstance(module, nn.Module) else ():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    if isinstance(posterior, guides.Guide):
        posterior.stamp(model)
    pn.trust_statistics(network)
    return model.eval(), posterior


def diagonal() -> list[tuple[str, str, str, str]]:
    """Every guide, normalizer, likelihood and prior, each with some of the others."""
    cases = [(n, "Categorical", g, "None") for g in GUIDES for n in ("own", "Weight")]
    cases += [(n, "Categorical", g, "None") for n in NORMALIZERS for g in ("MeanField", "bank")]
    cases += [("Group", y, g, "None") for y in LIKELIHOODS for g in ("LowRank", "draws")]
    cases += [("own", "Categorical", g, p) for p in PRIORS for g in ("MeanField", "Paired")]
    return list(dict.fromkeys(cases))


def everything() -> list[tuple[str, str, str, str]]:
    return [(n, y, g, "None") for n, y, g in itertools.product(NORMALIZERS, LIKELIHOODS, GUIDES)]


def outcome(model: pn.NormalizationModel, posterior: object, x: torch.Tensor):
    """What a model says of inputs, bit by bit."""
    if posterior is None:
        with torch.no_grad():
            return {"output": model.network(x)}
    found = pn.predict(model, posterior, x, 5, seed=3)
    return {"mean": found.mean.contiguous(), "entropy": found.entropy.contiguous()}


def main(folder: Path) -> None:
    """Load every file of a folder and write what it predicts beside it."""
    x = load_file(folder / "x.safetensors")["x"]
    for path in sorted(folder.glob("*.model")):
        outputs = LIKELIHOODS[path.stem.split(",")[1]][1]
        model, posterior = pn.load(path, make_network(outputs))
        save_file(outcome(model, posterior, x), path.with_suffix(".found"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
