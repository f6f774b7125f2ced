"""Judging posteriors: noise, uncertainty, metrics of predictions, export to ArviZ."""

from pyronorm.diagnostics.agreement import (
    Agreement,
    compare_draws,
    correlation,
    factorized_spread,
    latent_vectors,
    low_rank_spread,
    sliced_wasserstein,
)
from pyronorm.diagnostics.arviz_export import channels, to_arviz
from pyronorm.diagnostics.arviz_summary import summarize
from pyronorm.diagnostics.calibrate import calibrate
from pyronorm.diagnostics.calibrated import CalibratedPosterior, Candidate
from pyronorm.diagnostics.disturbance import Disturbance, normalization_disturbance
from pyronorm.diagnostics.ensemble_equivalent import (
    EnsembleCurve,
    EnsembleEquivalent,
    ensemble_curve,
    ensemble_equivalent,
)
from pyronorm.diagnostics.estimation_shift import (
    EstimationShift,
    ModeGap,
    estimation_shift,
    mode_gap,
)
from pyronorm.diagnostics.layer_inputs import InputShape, input_shape
from pyronorm.diagnostics.leave_one_out import LeaveOneOut, compare, loo
from pyronorm.diagnostics.metrics import Evaluation, evaluate, regression_metrics
from pyronorm.diagnostics.noise import (
    BatchSizes,
    Interval,
    LawTest,
    moment_batch_sizes,
    noise_law_test,
)
from pyronorm.diagnostics.realized_noise import RealizedNoise, RealizedNoises, realized_noise
from pyronorm.diagnostics.restarts import compare_restarts
from pyronorm.diagnostics.simulation import (
    Calibration,
    Uniformity,
    simulation_based_calibration,
)
from pyronorm.diagnostics.temperature import fit_temperature
from pyronorm.diagnostics.uncertainty import (
    RiskCurve,
    adaptive_ece,
    out_of_distribution,
    probabilistic_regression_metrics,
    selective_risk,
)
from pyronorm.diagnostics.variational import ParetoK, importance_summary, pareto_k
from pyronorm.stats.classification import classification_metrics
from pyronorm.stats.crps import crps_normal_mixture, crps_samples

__all__ = [
    "Agreement",
    "BatchSizes",
    "CalibratedPosterior",
    "Calibration",
    "Candidate",
    "Disturbance",
    "EnsembleCurve",
    "EnsembleEquivalent",
    "EstimationShift",
    "Evaluation",
    "InputShape",
    "Interval",
    "LawTest",
    "LeaveOneOut",
    "ModeGap",
    "ParetoK",
    "RealizedNoise",
    "RealizedNoises",
    "RiskCurve",
    "Uniformity",
    "adaptive_ece",
    "calibrate",
    "channels",
    "classification_metrics",
    "compare",
    "compare_draws",
    "compare_restarts",
    "correlation",
    "crps_normal_mixture",
    "crps_samples",
    "ensemble_curve",
    "ensemble_equivalent",
    "estimation_shift",
    "evaluate",
    "factorized_spread",
    "fit_temperature",
    "importance_summary",
    "input_shape",
    "latent_vectors",
    "loo",
    "low_rank_spread",
    "mode_gap",
    "moment_batch_sizes",
    "noise_law_test",
    "normalization_disturbance",
    "out_of_distribution",
    "pareto_k",
    "probabilistic_regression_metrics",
    "realized_noise",
    "regression_metrics",
    "selective_risk",
    "simulation_based_calibration",
    "sliced_wasserstein",
    "summarize",
    "to_arviz",
]
