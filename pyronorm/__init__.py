"""Normalization statistics as explicit latent variables in Pyro models.

The short of it::

    network = pn.convert(resnet)
    model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), num_data=len(train))
    guide = pn.guides.MeanField(model)
    pn.fit(model, guide, train_loader, epochs=30)
    idata = pn.to_arviz(model, guide, test_data, num_samples=200)
"""

from importlib import import_module
from types import ModuleType

from pyronorm import (
    baselines,
    conversion,
    datasets,
    diagnostics,
    distributions,
    errors,
    guides,
    infer,
    latents,
    likelihoods,
    networks,
    normalizers,
    priors,
    stats,
)
from pyronorm.conversion import (
    ConversionReport,
    analytic_start,
    conversion_report,
    convert,
    data_dependent_start,
)
from pyronorm.diagnostics import calibrate, channels, evaluate, to_arviz
from pyronorm.guides import StatisticsBank
from pyronorm.infer import (
    Checkpoint,
    CollectSWAG,
    EarlyStopping,
    Ensemble,
    NoiseSchedule,
    Objective,
    Optimization,
    PyroGuide,
    StandardizedLatents,
    Trainer,
    Validation,
    collect_bank,
    collect_curvature,
    estimate_population_statistics,
    find_mode,
    fit,
    learn_noise,
    load,
    predict,
    predict_linearized,
    refresh_draws,
    run_nuts,
    save,
    standardize_latents,
    with_target,
)
from pyronorm.latents import Draws, LatentNetwork, LatentSpace
from pyronorm.model import NormalizationModel, init_to_neutral, sample_latents
from pyronorm.normalizers import LatentNorm, trust_statistics
from pyronorm.version import installed_version

__version__ = installed_version("pyronorm")

__all__ = [
    "Checkpoint",
    "CollectSWAG",
    "ConversionReport",
    "Draws",
    "EarlyStopping",
    "Ensemble",
    "LatentNetwork",
    "LatentNorm",
    "LatentSpace",
    "NoiseSchedule",
    "NormalizationModel",
    "Objective",
    "Optimization",
    "PyroGuide",
    "StandardizedLatents",
    "StatisticsBank",
    "Trainer",
    "Validation",
    "analytic_start",
    "baselines",
    "calibrate",
    "channels",
    "collect_bank",
    "collect_curvature",
    "conversion",
    "conversion_report",
    "convert",
    "data_dependent_start",
    "datasets",
    "diagnostics",
    "distributions",
    "errors",
    "estimate_population_statistics",
    "evaluate",
    "find_mode",
    "fit",
    "guides",
    "infer",
    "init_to_neutral",
    "latents",
    "learn_noise",
    "likelihoods",
    "load",
    "networks",
    "normalizers",
    "predict",
    "predict_linearized",
    "priors",
    "refresh_draws",
    "run_nuts",
    "sample_latents",
    "save",
    "standardize_latents",
    "stats",
    "to_arviz",
    "trust_statistics",
    "with_target",
]


def __getattr__(name: str) -> ModuleType:
    """``pyronorm.plots``, which is imported when it is asked for."""
    if name == "plots":
        return import_module("pyronorm.plots")
    raise AttributeError(f"module 'pyronorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "plots"]
