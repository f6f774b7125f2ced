"""Training, population statistics, statistics banks, posteriors and prediction."""

from pyronorm.infer.bank import collect_bank
from pyronorm.infer.callbacks import Callback, EarlyStopping
from pyronorm.infer.checkpoint import Checkpoint
from pyronorm.infer.ensemble import Ensemble
from pyronorm.infer.fit import fit
from pyronorm.infer.history import Epoch, History
from pyronorm.infer.laplace import collect_curvature, find_mode
from pyronorm.infer.linearized import linearized_outputs, predict_linearized
from pyronorm.infer.noise_schedule import NoiseSchedule
from pyronorm.infer.nuts import run_nuts
from pyronorm.infer.options import Objective, Optimization, Validation
from pyronorm.infer.population import estimate_population_statistics
from pyronorm.infer.posterior import Posterior, as_posterior
from pyronorm.infer.predict import log_likelihoods, predict, predictive_nll
from pyronorm.infer.predictive import PredictiveDensity, learn_noise
from pyronorm.infer.prior_precision import choose_prior_precision
from pyronorm.infer.pyro_guide import PyroGuide
from pyronorm.infer.recorded import RecordedNUTS
from pyronorm.infer.refresh import refresh_draws
from pyronorm.infer.save import load, save
from pyronorm.infer.standardize import StandardizedLatents, standardize_latents
from pyronorm.infer.swag import CollectSWAG
from pyronorm.infer.targets import with_target
from pyronorm.infer.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "CollectSWAG",
    "EarlyStopping",
    "Ensemble",
    "Epoch",
    "History",
    "NoiseSchedule",
    "Objective",
    "Optimization",
    "Posterior",
    "PredictiveDensity",
    "PyroGuide",
    "RecordedNUTS",
    "StandardizedLatents",
    "Trainer",
    "Validation",
    "as_posterior",
    "choose_prior_precision",
    "collect_bank",
    "collect_curvature",
    "estimate_population_statistics",
    "find_mode",
    "fit",
    "learn_noise",
    "linearized_outputs",
    "load",
    "log_likelihoods",
    "predict",
    "predict_linearized",
    "predictive_nll",
    "refresh_draws",
    "run_nuts",
    "save",
    "standardize_latents",
    "with_target",
]
