"""Training, population statistics, statistics banks and prediction."""

from pyronorm.infer.bank import collect_bank
from pyronorm.infer.callbacks import Callback, EarlyStopping
from pyronorm.infer.draws import Chains, Draws, draw_latents, draw_prior
from pyronorm.infer.ensemble import ensemble_nll, predict_ensemble
from pyronorm.infer.fit import fit
from pyronorm.infer.history import Epoch, History
from pyronorm.infer.nuts import run_nuts
from pyronorm.infer.options import Objective, Optimization, Validation
from pyronorm.infer.population import estimate_population_statistics
from pyronorm.infer.predict import log_likelihoods, predict, predictive_nll
from pyronorm.infer.trainer import Trainer

__all__ = [
    "Callback",
    "Chains",
    "Draws",
    "EarlyStopping",
    "Epoch",
    "History",
    "Objective",
    "Optimization",
    "Trainer",
    "Validation",
    "collect_bank",
    "draw_latents",
    "draw_prior",
    "ensemble_nll",
    "estimate_population_statistics",
    "fit",
    "log_likelihoods",
    "predict",
    "predict_ensemble",
    "predictive_nll",
    "run_nuts",
]
