"""Plots. Each returns the matplotlib axes it drew on."""

from pyronorm.plots.diagnostics import (
    plot_disturbance,
    plot_effective_batch_size,
    plot_elbo_trace,
    plot_estimation_shift,
    plot_noise_law,
    plot_outliers,
    plot_posterior_scale,
    plot_rejection,
)
from pyronorm.plots.posteriors import (
    plot_correlation,
    plot_marginal,
    plot_ranks,
    plot_spread_ratio,
)
from pyronorm.plots.scores import plot_metric, plot_reliability

__all__ = [
    "plot_correlation",
    "plot_disturbance",
    "plot_effective_batch_size",
    "plot_elbo_trace",
    "plot_estimation_shift",
    "plot_marginal",
    "plot_metric",
    "plot_noise_law",
    "plot_outliers",
    "plot_posterior_scale",
    "plot_ranks",
    "plot_rejection",
    "plot_reliability",
    "plot_spread_ratio",
]
