"""Calls that are right, one for every public function, class and method that takes arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Normal
from torch import nn

import pyronorm as pn
from pyronorm import (
    baselines,
    datasets,
    diagnostics,
    distributions,
    guides,
    laws,
    likelihoods,
    networks,
    normalizers,
    plots,
    priors,
    randomness,
    stats,
    study,
)
from pyronorm.laws.law import log_normal, normal
from pyronorm.study import reference
from tests.fuzz.world import World

__all__ = ["CASES"]

Call = tuple[Callable[..., Any], dict[str, Any]]
_quick = {"num_samples": 2, "seed": 0}


def _as(public: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the signature of a public one."""
    function.__signature__ = inspect.signature(public)  # type: ignore[attr-defined]
    return function


class _HalfNorm(nn.GroupNorm):
    """A layer that has statistics of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2 + self.bias[:, None] / 2


def _study_object() -> study.Study:
    return study.make_study("digits", quick=True)


def _weights_swag(w: World) -> tuple[baselines.CollectWeights, baselines.WeightSWAG]:
    """What has been collected of a path of the model's weights, and the Gaussian of it."""
    named = dict(w.model.network.named_parameters())
    mean = torch.cat([p.detach().double().flatten() for p in named.values()])
    moments = {"count": 2, "mean": mean, "var": torch.full_like(mean, 1e-6)}
    collected = baselines.CollectWeights(2)
    collected.load_state_dict(
        {"names": list(named), "moments": moments, "deviations": [0.001 * mean, -0.001 * mean]}
    )
    return collected, collected.posterior(w.model)


CASES: dict[str, Callable[[World], Call]] = {
    # pyronorm
    "convert": lambda w: (pn.convert, {"network": w.plain}),
    "conversion_report": lambda w: (pn.conversion_report, {"network": w.network}),
    "analytic_start": lambda w: (
        pn.analytic_start,
        {
            "network": pn.convert(w.plain, normalizers.Analytic(), example_input=w.x),
            "example_input": w.x,
        },
    ),
    "data_dependent_start": lambda w: (
        pn.data_dependent_start,
        {"network": pn.convert(w.plain, normalizers.Weight(), example_input=w.x), "x": w.x},
    ),
    "estimate_population_statistics": lambda w: (
        pn.estimate_population_statistics,
        {"network": w.network, "data": w.x},
    ),
    "standardize_latents": lambda w: (
        pn.standardize_latents,
        {"network": w.weights, "data": w.x},
    ),
    "NoiseSchedule": lambda w: (pn.NoiseSchedule, {"batch_size": lambda epoch: 8.0}),
    "learn_noise": lambda w: (
        pn.learn_noise,
        {"model": w.model, "data": w.pairs, "epochs": 1, "num_draws": 2},
    ),
    "infer.PredictiveDensity": lambda w: (pn.infer.PredictiveDensity, {}),
    "StandardizedLatents": lambda w: (pn.StandardizedLatents, {"data": w.x}),
    "trust_statistics": lambda w: (pn.trust_statistics, {"network": w.network}),
    "collect_bank": lambda w: (
        pn.collect_bank,
        {"network": w.network, "data": w.x, "num_batches": 3, "batch_size": 8},
    ),
    "LatentNetwork": lambda w: (pn.LatentNetwork, {"network": w.network}),
    "LatentNetwork.of": lambda w: (pn.LatentNetwork.of, {"network": w.network}),
    "LatentNetwork.forward": lambda w: (
        w.latent,
        {"x": w.x, "shift": w.shift, "scale": w.scale},
    ),
    "LatentNetwork.pack": lambda w: (w.latent.pack, {"values": {w.layer: torch.ones(8)}}),
    "LatentNorm": lambda w: (
        pn.LatentNorm,
        {"normalizer": normalizers.Batch(1e-5), "num_channels": 8},
    ),
    "LatentNorm.forward": lambda w: (w.layer, {"x": torch.randn(24, 8)}),
    "LatentNorm.state": lambda w: (w.layer.state, {"name": "running_mean"}),
    "LatentSpace": lambda w: (pn.LatentSpace, {"layers": w.space.layers}),
    "LatentSpace.of": lambda w: (pn.LatentSpace.of, {"network": w.network}),
    "LatentSpace.unpack": lambda w: (w.space.unpack, {"vector": w.shift}),
    "LatentSpace.pack": lambda w: (w.space.pack, {"values": {"1": torch.ones(8)}}),
    "NormalizationModel": lambda w: (
        pn.NormalizationModel,
        {"network": w.network, "likelihood": likelihoods.Categorical(), "num_data": 24},
    ),
    "NormalizationModel.forward": lambda w: (w.model, {"x": w.x, "y": w.y}),
    "sample_latents": lambda w: (pn.sample_latents, {"network": w.latent}),
    "fit": lambda w: (
        pn.fit,
        {
            "model": w.model,
            "guide": w.guide,
            "train_data": w.pairs,
            "epochs": 1,
            "batch_size": 12,
            "progress": False,
        },
    ),
    "Trainer": lambda w: (
        _as(pn.Trainer, lambda **given: pn.Trainer(**given).run(1)),
        {"model": w.model, "guide": w.guide, "train_data": w.pairs, "batch_size": 12},
    ),
    "Trainer.run": lambda w: (pn.Trainer(w.model, w.guide, w.pairs).run, {"epochs": 1}),
    "Checkpoint": lambda w: (pn.Checkpoint, {"folder": w.folder}),
    "EarlyStopping": lambda w: (pn.EarlyStopping, {"patience": 2}),
    "Objective": lambda w: (pn.Objective, {}),
    "Optimization": lambda w: (pn.Optimization, {}),
    "Validation": lambda w: (pn.Validation, {"data": w.pairs}),
    "Validation in fit": lambda w: (
        lambda data: pn.fit(
            w.model, w.guide, w.pairs, epochs=1, progress=False, validation=pn.Validation(data)
        ),
        {"data": w.pairs},
    ),
    "with_target": lambda w: (
        lambda batches, key: list(pn.with_target(batches, key)),
        {"batches": [{"x": w.x, "labels": w.y}], "key": "labels"},
    ),
    "find_mode": lambda w: (pn.find_mode, {"model": w.model, "data": w.pairs, "max_steps": 2}),
    "collect_curvature": lambda w: (
        pn.collect_curvature,
        {"model": w.model, "data": w.pairs, "at": guides.Point(w.model)},
    ),
    "predict_linearized": lambda w: (
        pn.predict_linearized,
        {"model": w.model, "posterior": w.laplace, "data": w.x, **_quick},
    ),
    "choose_prior_precision": lambda w: (
        pn.infer.choose_prior_precision,
        {
            "model": w.model,
            "structure": guides.FullLaplace,
            "curvature": w.curvature,
            "validation": w.pairs,
            "candidates": [1.0, 10.0],
            **_quick,
        },
    ),
    "linearized_outputs": lambda w: (
        pn.infer.linearized_outputs,
        {"model": w.model, "posterior": w.laplace, "data": w.x},
    ),
    "predict": lambda w: (
        pn.predict,
        {"model": w.model, "posterior": w.guide, "data": w.x, **_quick},
    ),
    "predictive_nll": lambda w: (
        pn.infer.predictive_nll,
        {"model": w.model, "posterior": w.guide, "data": w.pairs, **_quick},
    ),
    "log_likelihoods": lambda w: (
        pn.infer.log_likelihoods,
        {"model": w.model, "posterior": w.guide, "data": w.pairs, **_quick},
    ),
    "evaluate": lambda w: (
        pn.evaluate,
        {"model": w.model, "posterior": w.guide, "data": w.pairs, **_quick},
    ),
    "to_arviz": lambda w: (
        pn.to_arviz,
        {"model": w.model, "posterior": w.guide, "data": w.pairs, **_quick},
    ),
    "run_nuts": lambda w: (
        pn.run_nuts,
        {
            "model": w.model,
            "data": w.pairs,
            "num_samples": 4,
            "warmup": 1,
            "num_chains": 1,
            "max_tree_depth": 1,
            "progress": False,
        },
    ),
    "as_posterior": lambda w: (pn.infer.as_posterior, {"value": w.guide, "where": "here"}),
    "PyroGuide": lambda w: (pn.PyroGuide, {"guide": w.guide}),
    "PyroGuide.draw": lambda w: (
        pn.PyroGuide(w.guide).draw,
        {"model": w.model, "num_samples": 2},
    ),
    "Ensemble": lambda w: (
        lambda members: pn.predict(w.model, pn.Ensemble(members), w.x, 2),
        {"members": [(w.model, w.guide)]},
    ),
    "Ensemble.draw": lambda w: (
        pn.Ensemble([(w.model, w.guide)]).draw,
        {"model": w.model, "num_samples": 2},
    ),
    "save": lambda w: (
        pn.save,
        {"path": w.folder / "a.safetensors", "model": w.model, "posterior": w.guide},
    ),
    "load": lambda w: (pn.load, {"path": w.saved, "network": w.plain}),
    "refresh_draws": lambda w: (
        pn.refresh_draws,
        {"model": w.model, "posterior": w.guide, "data": w.x, **_quick},
    ),
    "calibrate": lambda w: (
        pn.calibrate,
        {"model": w.model, "validation": w.pairs, "num_samples": 2, "num_folds": 2},
    ),
    "channels": lambda w: (pn.channels, {"idata": w.idata, "layer": "1"}),
    "Draws": lambda w: (pn.Draws, {"shift": torch.zeros(4, 8), "scale": torch.ones(4, 8)}),
    "Draws.join": lambda w: (pn.Draws.join, {"parts": [w.draws, w.draws]}),
    "Draws.to": lambda w: (w.draws.to, {"like": torch.zeros(1)}),
    "Draws.save": lambda w: (w.draws.save, {"path": w.folder / "draws.safetensors"}),
    "Draws.load": lambda w: (
        pn.Draws.load,
        {"path": (w.draws.save(w.folder / "d"), w.folder / "d")[1]},
    ),
    "Draws.draw": lambda w: (w.draws.draw, {"model": w.model, "num_samples": 2}),
    "StatisticsBank": lambda w: (
        pn.StatisticsBank,
        {
            "space": w.space,
            "batch_size": 8,
            "mean": torch.zeros(3, 8),
            "var": torch.ones(3, 8),
            "reference_mean": w.shift,
            "reference_var": w.scale,
            "eps": torch.full((8,), 1e-5),
        },
    ),
    "StatisticsBank.neutral": lambda w: (
        pn.StatisticsBank.neutral,
        {"space": w.space, "rows": 3},
    ),
    "StatisticsBank.draw": lambda w: (w.bank.draw, {"model": w.model, "num_samples": 2}),
    "StatisticsBank.effective_batch_size": lambda w: (w.bank.effective_batch_size, {}),
    "StatisticsBank.save": lambda w: (w.bank.save, {"path": w.folder / "bank"}),
    "StatisticsBank.load": lambda w: (
        pn.StatisticsBank.load,
        {"path": (w.bank.save(w.folder / "b"), w.folder / "b")[1]},
    ),
    "StatisticsBank.to": lambda w: (w.bank.to, {"like": torch.zeros(1)}),
    "seed_value": lambda w: (randomness.seed_value, {"seed": 1}),
    # normalizers, as layers of a network
    **{
        f"normalizers.{kind.__name__}": lambda w, kind=kind: (kind, {})
        for kind in (
            normalizers.RMS,
            normalizers.Batch,
            normalizers.Population,
            normalizers.Deviation,
            normalizers.Instance,
            normalizers.Layer,
            normalizers.Weight,
            normalizers.Analytic,
            normalizers.Exclusive,
            normalizers.Original,
            normalizers.SyncBatch,
        )
    },
    "conversion.own_statistics": lambda w: (
        pn.conversion.own_statistics,
        {"layer": _HalfNorm(4, 8)},
    ),
    "conversion.Kind": lambda w: (
        pn.conversion.Kind,
        {"normalizer": normalizers.Batch(), "num_channels": 8},
    ),
    "normalizers.Ghost": lambda w: (normalizers.Ghost, {"virtual_batch_size": 4}),
    "normalizers.Group": lambda w: (normalizers.Group, {"num_groups": 4}),
    "normalizers.BatchWhitening": lambda w: (
        normalizers.BatchWhitening,
        {"channels_per_group": 4},
    ),
    "normalizers.GroupWhitening": lambda w: (normalizers.GroupWhitening, {"num_groups": 4}),
    "normalizers.Analytic.from_data": lambda w: (
        normalizers.Analytic.from_data,
        {"x": w.x},
    ),
    "conversion.register": lambda w: (
        pn.conversion.register,
        {"layer_class": type("Mine", (nn.Module,), {}), "kind": lambda layer: None},
    ),
    # laws, priors
    "laws.Independent": lambda w: (
        laws.Independent,
        {"shift": normal(w.shift, w.scale), "scale": log_normal(w.shift, w.scale)},
    ),
    "laws.Joint": lambda w: (
        laws.Joint,
        {"latents": normal(torch.zeros(16), torch.ones(16))},
    ),
    "laws.ScaleGivenShift": lambda w: (
        laws.ScaleGivenShift,
        {
            "shift": normal(w.shift, w.scale),
            "scale": lambda shift: log_normal(shift, w.scale),
        },
    ),
    "laws.ShiftGivenScale": lambda w: (
        laws.ShiftGivenScale,
        {
            "shift": lambda scale: normal(scale, w.scale),
            "scale": log_normal(w.shift, w.scale),
        },
    ),
    "laws.Hierarchical": lambda w: (
        laws.Hierarchical,
        {
            "hyperparameters": {"n": log_normal(w.shift[:1], w.scale[:1])},
            "given": lambda hyper: w.guide.law(),
        },
    ),
    "priors.batch_noise_law": lambda w: (priors.batch_noise_law, {"df": 7 * w.scale}),
    "laws.kl": lambda w: (
        laws.kl,
        {"q": w.guide.law(), "p": w.model.prior.law(w.space, w.latent.like)},
    ),
    "laws.Rows": lambda w: (
        laws.Rows,
        {"shift": torch.zeros(4, 8), "scale": torch.ones(4, 8), "source": "here"},
    ),
    "laws.draw": lambda w: (w.guide.law().draw, {"num_samples": 2}),
    "laws.log_prob": lambda w: (w.guide.law().log_prob, {"shift": w.shift, "scale": w.scale}),
    "laws.quantiles": lambda w: (w.guide.law().quantiles, {"q": torch.tensor([0.5])}),
    "priors.BatchNoise": lambda w: (priors.BatchNoise, {"batch_size": 8.0}),
    "priors.HierarchicalBatchNoise": lambda w: (priors.HierarchicalBatchNoise, {}),
    "priors.Standard": lambda w: (priors.Standard, {}),
    "Prior.draws": lambda w: (priors.Standard().draws, {"model": w.model, "num_samples": 2}),
    "Prior.sample": lambda w: (
        priors.Standard().sample,
        {"space": w.space, "like": w.latent.like},
    ),
    "Prior.log_prob": lambda w: (
        priors.Standard().log_prob,
        {"space": w.space, "shift": w.shift, "scale": w.scale, "hyper": {}},
    ),
    "Prior.marginal_log_prob": lambda w: (
        priors.HierarchicalBatchNoise().marginal_log_prob,
        {"space": w.space, "shift": w.shift, "scale": w.scale},
    ),
    # likelihoods
    "likelihoods.Categorical": lambda w: (likelihoods.Categorical, {}),
    "likelihoods.Normal": lambda w: (likelihoods.Normal, {}),
    "likelihoods.HeteroscedasticNormal": lambda w: (likelihoods.HeteroscedasticNormal, {}),
    "likelihoods.StudentT": lambda w: (likelihoods.StudentT, {}),
    "likelihoods.NegativeBinomial": lambda w: (likelihoods.NegativeBinomial, {}),
    "likelihoods.MultivariateNormal": lambda w: (
        likelihoods.MultivariateNormal,
        {"std": torch.ones(2), "factor": torch.ones(2, 1)},
    ),
    "likelihoods.Ordinal": lambda w: (likelihoods.Ordinal, {"cutpoints": 3}),
    "likelihoods.Function": lambda w: (
        likelihoods.Function,
        {"function": lambda output: torch.distributions.Normal(output, 1.0)},
    ),
    "likelihoods.Tempered": lambda w: (
        likelihoods.Tempered,
        {"likelihood": likelihoods.Categorical(), "temperature": 1.5},
    ),
    "likelihoods.per_example": lambda w: (
        likelihoods.per_example,
        {"distribution": Normal(torch.zeros(24, 2), 1.0)},
    ),
    "Likelihood.of": lambda w: (
        likelihoods.Likelihood.of,
        {"function": lambda output: torch.distributions.Normal(output, 1.0)},
    ),
    "Likelihood.log_prob": lambda w: (
        likelihoods.Categorical().log_prob,
        {"output": torch.randn(24, 2), "y": w.y},
    ),
    "Normal.log_prob": lambda w: (
        likelihoods.Normal(1.0).log_prob,
        {"output": torch.randn(24), "y": w.values},
    ),
    "Likelihood.predict": lambda w: (
        likelihoods.Categorical().predict,
        {"output": torch.randn(4, 24, 2)},
    ),
    "Likelihood.scores": lambda w: (
        likelihoods.Categorical().scores,
        {"output": torch.randn(4, 24, 2), "y": w.y},
    ),
    "Likelihood.expected": lambda w: (
        likelihoods.Categorical().expected,
        {"output": torch.randn(24, 2)},
    ),
    "Prediction.interval": lambda w: (w.real_prediction.interval, {}),
    "Prediction.quantiles": lambda w: (w.real_prediction.quantiles, {"q": 0.5}),
    "Prediction.sample": lambda w: (w.prediction.sample, {}),
    "Prediction.log_prob": lambda w: (w.prediction.log_prob, {"y": w.y}),
    "Prediction.nll": lambda w: (w.prediction.nll, {"y": w.y}),
    "Prediction.metrics": lambda w: (w.prediction.metrics, {"y": w.y}),
    "Prediction.join": lambda w: (likelihoods.Prediction.join, {"parts": [w.prediction] * 2}),
    "Intervals.coverage": lambda w: (w.real_prediction.interval().coverage, {"y": w.values}),
    # guides
    "guides.HyperGuide": lambda w: (
        guides.HyperGuide,
        {"prior": priors.HierarchicalBatchNoise(), "space": w.space, "like": w.latent.like},
    ),
    **{
        f"guides.{kind.__name__}": lambda w, kind=kind: (kind, {"model": w.model})
        for kind in (
            guides.DiagonalLaplace,
            guides.EffectiveBatchSize,
            guides.Flow,
            guides.FullLaplace,
            guides.LowRank,
            guides.LowRankLaplace,
            guides.MAP,
            guides.SWAG,
            guides.MeanField,
            guides.Paired,
            guides.Point,
        )
    },
    "guides.Mixture": lambda w: (guides.Mixture, {"model": w.model}),
    "Mixture.component": lambda w: (guides.Mixture(w.model).component, {"draws": w.draws}),
    "guides.BatchNoise": lambda w: (guides.BatchNoise, {"model": w.model, "batch_size": 8.0}),
    "guides.Fixed": lambda w: (guides.Fixed, {"model": w.model, "prior": priors.Standard()}),
    "guides.MonteCarloBatchNorm": lambda w: (
        guides.MonteCarloBatchNorm,
        {"model": w.model, "bank": w.bank},
    ),
    "guides.StochasticBatchNorm": lambda w: (
        guides.StochasticBatchNorm,
        {"model": w.model, "bank": w.bank},
    ),
    "guides.PopulationStatistics": lambda w: (
        guides.PopulationStatistics,
        {"model": w.model, "num_values": 100.0},
    ),
    "CollectSWAG": lambda w: (pn.CollectSWAG, {}),
    "CollectSWAG.update": lambda w: (pn.CollectSWAG().update, {"z": torch.zeros(16)}),
    "SWAG.from_moments": lambda w: (
        guides.SWAG.from_moments,
        {
            "model": w.model,
            "mean": torch.zeros(16),
            "variance": torch.ones(16),
            "deviations": torch.randn(16, 3),
        },
    ),
    "guides.Curvature": lambda w: (
        guides.Curvature,
        {
            "space": w.space,
            "mode": torch.zeros(16),
            "factor": torch.ones(2, 16),
            "rest": torch.ones(16),
            "log_likelihood": -1.0,
        },
    ),
    "Curvature.truncated": lambda w: (w.curvature.truncated, {"rank": 2}),
    "Laplace.from_curvature": lambda w: (
        guides.FullLaplace.from_curvature,
        {"model": w.model, "curvature": w.curvature},
    ),
    "Laplace.from_evidence": lambda w: (
        guides.FullLaplace.from_evidence,
        {
            "model": w.model,
            "curvature": pn.collect_curvature(w.model, w.pairs),
        },
    ),
    "EffectiveBatchSize.from_bank": lambda w: (
        guides.EffectiveBatchSize.from_bank,
        {"model": w.model, "bank": w.bank},
    ),
    "LowRank.from_bank": lambda w: (
        guides.LowRank.from_bank,
        {"model": w.model, "bank": w.bank, "rank": 2},
    ),
    "Paired.from_bank": lambda w: (
        guides.Paired.from_bank,
        {"model": w.model, "bank": w.bank},
    ),
    "PopulationStatistics.from_bank": lambda w: (
        guides.PopulationStatistics.from_bank,
        {"model": w.model, "bank": w.bank, "num_data": 24},
    ),
    "LowRank.from_batch_size": lambda w: (
        guides.LowRank.from_batch_size,
        {"model": w.model, "batch_size": 8.0, "rank": 2},
    ),
    "MeanField.from_batch_size": lambda w: (
        guides.MeanField.from_batch_size,
        {"model": w.model, "batch_size": 8.0},
    ),
    "Guide.draw": lambda w: (w.guide.draw, {"model": w.model, "num_samples": 2}),
    "Guide.log_prob": lambda w: (w.guide.log_prob, {"shift": w.shift, "scale": w.scale}),
    "Guide.kl": lambda w: (w.guide.kl, {"prior": priors.Standard()}),
    "Guide.quantiles": lambda w: (w.guide.quantiles, {"quantiles": [0.5]}),
    # diagnostics
    "adaptive_ece": lambda w: (
        diagnostics.adaptive_ece,
        {"probabilities": torch.full((24, 2), 0.5), "y": w.y},
    ),
    "classification_metrics": lambda w: (
        diagnostics.classification_metrics,
        {"probabilities": torch.full((24, 2), 0.5), "y": w.y},
    ),
    "compare": lambda w: (diagnostics.compare, {"idatas": {"a": w.idata, "b": w.idata}}),
    "compare_draws": lambda w: (
        diagnostics.compare_draws,
        {"draws": torch.randn(20, 4), "reference": torch.randn(20, 4)},
    ),
    "compare_restarts": lambda w: (
        diagnostics.compare_restarts,
        {"idatas": [w.idata, w.idata]},
    ),
    "correlation": lambda w: (diagnostics.correlation, {"draws": torch.randn(20, 4)}),
    "crps_normal_mixture": lambda w: (
        diagnostics.crps_normal_mixture,
        {"mean": torch.zeros(2, 5), "std": torch.ones(2, 5), "y": torch.zeros(5)},
    ),
    "crps_samples": lambda w: (
        diagnostics.crps_samples,
        {"samples": torch.randn(6, 5), "y": torch.zeros(5)},
    ),
    "estimation_shift": lambda w: (
        diagnostics.estimation_shift,
        {"network": w.network, "data": w.x},
    ),
    "factorized_spread": lambda w: (
        diagnostics.factorized_spread,
        {"covariance": torch.eye(4)},
    ),
    "low_rank_spread": lambda w: (
        diagnostics.low_rank_spread,
        {"covariance": torch.eye(4), "rank": 2},
    ),
    "importance_summary": lambda w: (diagnostics.importance_summary, {"idata": w.idata}),
    "input_shape": lambda w: (diagnostics.input_shape, {"network": w.network, "data": w.x}),
    "latent_vectors": lambda w: (diagnostics.latent_vectors, {"draws": w.draws}),
    "loo": lambda w: (diagnostics.loo, {"idata": w.idata}),
    "summarize": lambda w: (diagnostics.summarize, {"idata": w.idata, "per": "layer"}),
    "pareto_k": lambda w: (diagnostics.pareto_k, {"idata": w.idata}),
    "mode_gap": lambda w: (
        diagnostics.mode_gap,
        {"model": w.model, "data": w.pairs, "batch_size": 8},
    ),
    "moment_batch_sizes": lambda w: (diagnostics.moment_batch_sizes, {"bank": w.bank}),
    "noise_law_test": lambda w: (diagnostics.noise_law_test, {"bank": w.bank, "n": 12.0}),
    "normalization_disturbance": lambda w: (
        diagnostics.normalization_disturbance,
        {"network": w.network, "x": w.x, "batch_sizes": (4, 8), "num_draws": 2},
    ),
    "out_of_distribution": lambda w: (
        diagnostics.out_of_distribution,
        {"inside": torch.rand(9), "outside": torch.rand(7)},
    ),
    "probabilistic_regression_metrics": lambda w: (
        diagnostics.probabilistic_regression_metrics,
        {"mean": torch.zeros(2, 5), "std": torch.ones(2, 5), "y": torch.zeros(5)},
    ),
    "realized_noise": lambda w: (
        diagnostics.realized_noise,
        {"model": w.model, "posterior": w.guide, "data": w.x, **_quick},
    ),
    "regression_metrics": lambda w: (
        diagnostics.regression_metrics,
        {"mean": w.values, "y": w.values},
    ),
    "ensemble_curve": lambda w: (
        diagnostics.ensemble_curve,
        {"predictions": [w.prediction], "y": w.y, "folds": 4},
    ),
    "ensemble_equivalent": lambda w: (
        diagnostics.ensemble_equivalent,
        {"curves": torch.tensor([[0.5, 0.4]]), "nll": torch.tensor([0.45])},
    ),
    "selective_risk": lambda w: (
        diagnostics.selective_risk,
        {"uncertainty": torch.rand(9), "loss": torch.rand(9)},
    ),
    "simulation_based_calibration": lambda w: (
        diagnostics.simulation_based_calibration,
        {
            "model": w.model,
            "x": w.x,
            "fit": lambda x, y: w.guide,
            "num_simulations": 2,
            "num_draws": 3,
        },
    ),
    "sliced_wasserstein": lambda w: (
        diagnostics.sliced_wasserstein,
        {"a": torch.randn(20, 4), "b": torch.randn(20, 4)},
    ),
    "Calibration.histogram": lambda w: (w.ranks.histogram, {"bins": 5}),
    "Calibration.uniformity": lambda w: (w.ranks.uniformity, {"bins": 5}),
    # plots
    "plot_correlation": lambda w: (plots.plot_correlation, {"correlation": torch.eye(4)}),
    "plot_disturbance": lambda w: (
        plots.plot_disturbance,
        {
            "found": {
                "a": diagnostics.normalization_disturbance(w.network, w.x, (4, 8), num_draws=2)
            }
        },
    ),
    "plot_effective_batch_size": lambda w: (
        plots.plot_effective_batch_size,
        {"sizes": diagnostics.moment_batch_sizes(w.bank)},
    ),
    "plot_elbo_trace": lambda w: (plots.plot_elbo_trace, {"histories": {"a": w.history}}),
    "plot_estimation_shift": lambda w: (
        plots.plot_estimation_shift,
        {"found": {"a": diagnostics.estimation_shift(w.network, w.x)}},
    ),
    "plot_marginal": lambda w: (
        plots.plot_marginal,
        {"draws": {"a": torch.randn(20)}, "reference": torch.randn(20)},
    ),
    "plot_metric": lambda w: (plots.plot_metric, {"values": {"a": [1.0, 2.0]}, "name": "NLL"}),
    "plot_noise_law": lambda w: (plots.plot_noise_law, {"bank": w.bank}),
    "plot_outliers": lambda w: (plots.plot_outliers, {"scores": {"a": torch.rand(9)}}),
    "plot_posterior_scale": lambda w: (plots.plot_posterior_scale, {"idatas": {"a": w.idata}}),
    "plot_ranks": lambda w: (plots.plot_ranks, {"calibration": w.ranks, "bins": 5}),
    "plot_rejection": lambda w: (
        plots.plot_rejection,
        {"curves": {"a": diagnostics.selective_risk(torch.rand(9), torch.rand(9))}},
    ),
    "plot_reliability": lambda w: (
        plots.plot_reliability,
        {"predictions": {"a": (torch.full((24, 2), 0.5), w.y)}},
    ),
    "plot_spread_ratio": lambda w: (
        plots.plot_spread_ratio,
        {"ratios": {"a": (torch.rand(8), torch.rand(8))}},
    ),
    # stats
    "stats.Newton": lambda w: (stats.Newton, {}),
    "stats.channel_moments": lambda w: (stats.channel_moments, {"x": w.x}),
    "stats.merge_moments": lambda w: (
        stats.merge_moments,
        {"a": stats.channel_moments(w.x), "b": stats.channel_moments(w.x)},
    ),
    "stats.effective_batch_size": lambda w: (
        stats.effective_batch_size,
        {
            "shift": torch.randn(9, 8) / 4,
            "scale": torch.rand(9, 8) + 0.5,
            "groups": torch.zeros(8, dtype=torch.long),
        },
    ),
    "stats.log_var_mean": lambda w: (stats.log_var_mean, {"batch_size": 8}),
    "stats.log_var_variance": lambda w: (stats.log_var_variance, {"batch_size": 8}),
    "stats.shift_variance": lambda w: (stats.shift_variance, {"batch_size": 8, "num_data": 24}),
    # datasets
    "ImageData": lambda w: (
        datasets.ImageData,
        {"name": "t", "train": w.images.train, "test": w.images.test, "num_classes": 2},
    ),
    "ImageData.split_off": lambda w: (w.images.split_off, {"num_validation": 3}),
    "ImageData.standardized": lambda w: (w.images.standardized, {}),
    "ImageData.subset": lambda w: (w.images.subset, {"num_train": 3, "num_test": 3}),
    "corrupt": lambda w: (
        datasets.corrupt,
        {"images": torch.rand(2, 1, 8, 8), "corruption": "fog", "severity": 2},
    ),
    "PadCropFlip": lambda w: (datasets.PadCropFlip, {}),
    "PadCropFlip.images": lambda w: (datasets.PadCropFlip(1).images, {"x": torch.rand(2, 1, 4, 4)}),
    "Table": lambda w: (
        datasets.Table,
        {
            "name": "t",
            "x": w.x,
            "y": w.values,
            "feature_names": ("a", "b", "c"),
            "target_name": "y",
        },
    ),
    "Table.split": lambda w: (w.table.split, {}),
    "TabularData.split_off": lambda w: (w.tabular.split_off, {"num_validation": 3}),
    "from_dataset": lambda w: (
        datasets.from_dataset,
        {
            name: torch.utils.data.TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6) % 2)
            for name in ("train", "test")
        },
    ),
    "datasets.load": lambda w: (datasets.load, {"name": "digits"}),
    "datasets.load_digits": lambda w: (datasets.load_digits, {}),
    "datasets.load_table": lambda w: (datasets.load_table, {"name": "diabetes"}),
    **{
        f"datasets.{load.__name__}": lambda w, load=load: (load, {"data_root": w.folder})
        for load in (
            datasets.load_cifar10,
            datasets.load_cifar100,
            datasets.load_mnist,
            datasets.load_fashion_mnist,
            datasets.load_notmnist,
        )
    },
    "datasets.load_uci": lambda w: (
        datasets.load_uci,
        {"name": "concrete", "data_root": w.folder},
    ),
    "read_idx": lambda w: (datasets.read_idx, {"path": w.folder / "none"}),
    "read_table": lambda w: (datasets.read_table, {"folder": w.folder}),
    # baselines
    "fit_jackknife": lambda w: (
        baselines.fit_jackknife,
        {"model": w.plain_regression, "data": (w.x, w.values)},
    ),
    "Jackknife.intervals": lambda w: (
        baselines.fit_jackknife(w.plain_regression, (w.x, w.values)).intervals,
        {"data": w.x},
    ),
    "fit_laplace": lambda w: (baselines.fit_laplace, {"model": w.model, "data": w.pairs}),
    "LastLayerLaplace.predict": lambda w: (
        baselines.fit_laplace(w.model, w.pairs, prior_precision=1.0).predict,
        {"data": w.x, "num_samples": 2},
    ),
    "fit_temperature": lambda w: (
        diagnostics.fit_temperature,
        {"prediction": w.prediction, "y": w.y},
    ),
    "Likelihood.tempered": lambda w: (likelihoods.Categorical().tempered, {"temperature": 1.5}),
    "Prediction.tempered": lambda w: (w.prediction.tempered, {"temperature": 1.5}),
    "CollectWeights": lambda w: (baselines.CollectWeights, {}),
    "CollectWeights.posterior": lambda w: (_weights_swag(w)[0].posterior, {"model": w.model}),
    "WeightSWAG.draw_weights": lambda w: (_weights_swag(w)[1].draw_weights, {"num_samples": 2}),
    "WeightSWAG.draw_networks": lambda w: (
        _weights_swag(w)[1].draw_networks,
        {"data": w.x, "num_samples": 2},
    ),
    "predict_dropout": lambda w: (
        baselines.predict_dropout,
        {
            "model": pn.NormalizationModel(
                pn.LatentNetwork(nn.Sequential(nn.Dropout(), nn.Linear(3, 2)), plain=True),
                likelihoods.Categorical(),
                24,
            ),
            "data": w.x,
            "num_samples": 2,
        },
    ),
    # networks
    "MLP": lambda w: (networks.MLP, {"in_features": 3}),
    "VGG11": lambda w: (networks.VGG11, {"width": 0.1}),
    "AllCNN": lambda w: (networks.AllCNN, {"width": 0.1}),
    "CifarResNet": lambda w: (networks.CifarResNet, {"depth": 8, "width": 4}),
    "LeNet5": lambda w: (networks.LeNet5, {}),
    "LeNet5.caffe": lambda w: (networks.LeNet5.caffe, {}),
    "ResNet18": lambda w: (networks.ResNet18, {"width": 4}),
    "SmallConvNet": lambda w: (networks.SmallConvNet, {}),
    "WideResNet": lambda w: (networks.WideResNet, {"depth": 10, "widen_factor": 1}),
    # distributions
    "InverseChi": lambda w: (distributions.InverseChi, {"df": 7.0, "scale": 1.0}),
    "InverseChi.log_prob": lambda w: (
        distributions.InverseChi(7.0, 1.0).log_prob,
        {"value": torch.tensor(1.0)},
    ),
    "ImproperFlat": lambda w: (distributions.ImproperFlat, {"like": torch.zeros(3)}),
    "ImproperLogUniform": lambda w: (distributions.ImproperLogUniform, {"like": torch.zeros(3)}),
    "DrawsOnly": lambda w: (
        distributions.DrawsOnly,
        {"value": torch.zeros(3), "event_dim": 1, "source": "here"},
    ),
    # studies
    "study.Training": lambda w: (study.Training, {}),
    "study.Settings": lambda w: (study.Settings, {}),
    "study.TrainingNoiseSettings": lambda w: (study.TrainingNoiseSettings, {}),
    "study.NoiseChoicesSettings": lambda w: (study.NoiseChoicesSettings, {}),
    "study.CompareSettings": lambda w: (study.CompareSettings, {}),
    "study.make_study": lambda w: (study.make_study, {"name": "digits"}),
    "study.restore_study": lambda w: (study.restore_study, {"record": {}}),
    "study.make_network": lambda w: (study.make_network, {"name": "lenet-5", "data": w.images}),
    "study.choose_methods": lambda w: (study.choose_methods, {}),
    "study.run_study": lambda w: (
        study.run_study,
        {"study": _study_object(), "path": w.folder, "progress": False},
    ),
    "study.write_report": lambda w: (
        study.write_report,
        {"study": _study_object(), "path": w.folder},
    ),
    "study.Table": lambda w: (
        study.Table,
        {"title": "t", "rows": [study.Row("a", 0, {"nll": 1.0})], "columns": study.columns("nll")},
    ),
    "study.frame": lambda w: (study.frame, {"rows": [study.Row("a", 0, {"nll": 1.0})]}),
    "study.summarize": lambda w: (
        study.summarize,
        {"table": study.Table("t", [study.Row("a", 0, {"nll": 1.0})], study.columns("nll"))},
    ),
    "study.judge": lambda w: (
        study.judge,
        {
            "model": w.model,
            "guide": w.guide,
            "test": datasets.TableSplit(w.x, w.y),
            "num_samples": 2,
            "seed": 0,
        },
    ),
    "study.train": lambda w: (
        study.train,
        {
            "network": networks.SmallConvNet(2, 1),
            "normalizer": None,
            "make_guide": lambda model, noise: guides.Point(model),
            "data": w.images,
            "training": study.Training(epochs=1, batch_size=4),
            "noise": 8.0,
            "seed": 0,
            "device": "cpu",
        },
    ),
    "study.Comparison": lambda w: (
        study.Comparison,
        {"name": "digits", "settings": study.Settings()},
    ),
    "study.format_table": lambda w: (
        study.format_table,
        {"table": study.Table("t", [study.Row("a", 0, {"nll": 1.0})], study.columns("nll"))},
    ),
    "study.Folder": lambda w: (study.Folder, {"path": w.folder}),
    "study.center": lambda w: (
        study.center,
        {"model": w.model, "guide": w.guide, "num_samples": 4},
    ),
    "study.Trained": lambda w: (
        lambda rows: study.Trained(w.model, w.guide, 0.0, w.x, 8, 0).bank(rows),
        {"rows": 4},
    ),
    "reference.Settings": lambda w: (reference.Settings, {}),
    "reference.choose_posteriors": lambda w: (reference.choose_posteriors, {}),
    "reference.choose_prior": lambda w: (reference.choose_prior, {"name": "standard"}),
    "reference.run": lambda w: (
        reference.run,
        {"settings": None},
    ),
}
