"""Calls of the grid that are right not to be refused, and those whose error is another library's."""

from __future__ import annotations

from fnmatch import fnmatch

__all__ = ["reason_for"]

Rules = list[tuple[str, str, set[str], str]]
"""Patterns of the case, the argument, names of values, and why."""

_NETWORK = "the user's own network refuses its input, and its error is shown as it is"
_TORCH = "torch's own check of a distribution's parameters"
_LATER = "refused where it is used"

RAW: Rules = [
    ("*", "data", {"complex", "other width", "no axes"}, _NETWORK),
    ("*", "x", {"complex", "other width", "no axes"}, _NETWORK),
    ("evaluate", "calibrate_on", {"complex", "other width"}, _NETWORK),
    ("to_arviz", "model", {"a class", "a network"}, "any function is a Pyro model"),
    ("load", "network", {"a module class"}, "a class makes a network, of arguments"),
    ("InverseChi", "*", {"0", "-1.0", "nan", "a tensor with nan"}, _TORCH),
]

ANSWERS: Rules = [
    ("trust_statistics", "network", {"plain"}, "it has no statistics that could be stale"),
    ("LatentNetwork.pack", "values", {"{}"}, "NaN for layers without a value, as it says"),
    ("LatentSpace.unpack", "vector", {"nan", "inf"}, "it cuts a vector up, whatever is in it"),
    ("fit", "callbacks", {"things"}, "any object may look on, with the methods it has"),
    ("Trainer", "callbacks", {"things"}, "any object may look on, with the methods it has"),
    ("with_target", "batches", {"()"}, "no batches have no targets; whoever uses them says so"),
    ("to_arviz", "data", {"x alone"}, "an export without data has predictions"),
    ("StatisticsBank", "reference_var", {"zero"}, "a channel may be constant"),
    ("StatisticsBank", "eps", {"zero"}, "a layer may add nothing"),
    ("normalizers.Analytic.from_data", "x", {"other width"}, "data have any width"),
    ("laws.quantiles", "q", {"empty"}, "no levels, no quantiles"),
    (
        "Prior.sample",
        "like",
        {"no axes", "empty", "five axes"},
        "of like only device and dtype count",
    ),
    ("Improper*", "like", {"no axes", "empty", "five axes"}, "of like only shape and dtype count"),
    ("DrawsOnly", "value", {"empty", "five axes"}, "a draw has any shape"),
    ("InverseChi.log_prob", "value", {"no axes", "empty", "five axes"}, "densities broadcast"),
    ("InverseChi", "*", {"inf"}, "torch's distributions take it"),
    ("Likelihood.*", "output", {"nan", "five axes"}, "NaN stays visible; images have axes"),
    ("crps_normal_mixture", "std", {"no axes", "other width"}, "widths broadcast"),
    ("probabilistic_regression_metrics", "std", {"no axes", "other width"}, "widths broadcast"),
    ("probabilistic_regression_metrics", "levels", {"()"}, "no levels, no coverage"),
    ("plot_correlation", "correlation", {"nan"}, "what is unknown is left blank"),
    ("plot_posterior_scale", "idatas", {"{}"}, "an empty plot of nothing"),
    ("stats.channel_moments", "x", {"five axes"}, "volumes have as many"),
    ("stats.log_var_*", "batch_size", {"a tensor with nan"}, "NaN stays NaN, element by element"),
    ("study.Training", "precision", {"'no-such'"}, "Lightning refuses it when training begins"),
    ("study.Settings", "seeds", {"(0,)"}, "0 is a seed"),
    ("study.Table", "columns", {"()"}, "a table may have labels alone"),
    ("study.Table", "*", {"['no-such']", "'no-such'", "0"}, "labels are known where it is shown"),
    ("reference.Settings", "seed", {"9223372036854775808"}, _LATER),
]


def reason_for(outcome: str, case: str, argument: str, value: str) -> str | None:
    """Why a call that is not refused by name is right as it is; None if there is no reason."""
    for pattern, name, values, reason in RAW if outcome == "raw" else ANSWERS:
        if fnmatch(case, pattern) and fnmatch(argument, name) and value in values:
            return reason
    return None
