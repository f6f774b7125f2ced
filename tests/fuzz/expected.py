"""Calls of the grid that are right not to be refused, and those whose error is another library's."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

__all__ = ["NOT_CALLED", "reason_for", "rules_without_use"]

Rules = list[tuple[str, str, set[str], str]]
"""Patterns of the case, the argument, names of values, and why."""

Call = tuple[str, str, str, str, str, str]
"""Case, argument, kind and name of the value, outcome, and what was said."""

_NETWORK = "the user's own network refuses its input, and its error is shown as it is"
_TORCH = "torch's own check of a distribution's parameters"

RAW: Rules = [
    ("*", "data", {"complex", "other width"}, _NETWORK),
    ("*", "x", {"complex", "other width"}, _NETWORK),
    ("data_dependent_start", "x", {"no axes"}, _NETWORK),
    ("evaluate", "calibrate_on", {"complex", "other width"}, _NETWORK),
    ("calibrate", "*", {"complex", "other width"}, _NETWORK),
    ("InverseChi", "*", {"0", "-1.0", "nan", "a tensor with nan"}, _TORCH),
]

ANSWERS: Rules = [
    ("LatentNetwork.pack", "values", {"{}"}, "NaN for layers without a value, as it says"),
    ("LatentSpace.unpack", "vector", {"nan", "inf"}, "it cuts a vector up, whatever is in it"),
    ("with_target", "batches", {"()"}, "no batches have no targets; whoever uses them says so"),
    ("to_arviz", "data", {"x alone"}, "an export without data has predictions"),
    ("calibrate", "candidates", {"{}"}, "the plain network alone, and its temperature"),
    *(
        (case, "like", {"no axes", "empty", "five axes"}, "of like only device and dtype count")
        for case in ("Prior.sample", "guides.HyperGuide")
    ),
    ("StatisticsBank", "reference_var", {"zero"}, "a channel may be constant"),
    ("StatisticsBank", "eps", {"zero"}, "a layer may add nothing"),
    ("normalizers.Analytic.from_data", "x", {"other width"}, "data have any width"),
    ("laws.quantiles", "q", {"empty"}, "no levels, no quantiles"),
    ("Improper*", "like", {"no axes", "empty", "five axes"}, "of like only shape and dtype count"),
    ("priors.batch_noise_law", "df", {"empty", "five axes"}, "channels in any number of draws"),
    ("DrawsOnly", "value", {"empty", "five axes"}, "a draw has any shape"),
    ("InverseChi.log_prob", "value", {"no axes", "empty", "five axes"}, "densities broadcast"),
    ("InverseChi", "*", {"inf"}, "torch's distributions take it"),
    ("Likelihood.*", "output", {"five axes"}, "outputs of images have axes"),
    (
        "Likelihood.*",
        "output",
        {"nan"},
        "NaN stays visible in what is returned, example by example",
    ),
    ("crps_normal_mixture", "std", {"no axes", "other width"}, "widths broadcast"),
    ("probabilistic_regression_metrics", "std", {"no axes", "other width"}, "widths broadcast"),
    ("probabilistic_regression_metrics", "levels", {"()"}, "no levels, no coverage"),
    ("plot_correlation", "correlation", {"nan"}, "that of a constant is unknown, and left blank"),
    ("stats.channel_moments", "x", {"five axes"}, "volumes have as many"),
    ("study.Table", "columns", {"()"}, "a table may have labels alone"),
    ("study.Table", "baseline", {"'no-such'"}, "the jobs of that method may be missing"),
]

NOT_CALLED = {
    # What functions of the library return.
    *("ConversionReport", "LayerReport", "LatentLayer", "Epoch", "History", "Scores"),
    *("Agreement", "BatchSizes", "CalibratedPosterior", "Candidate", "Disturbance"),
    *("EstimationShift", "InputShape", "Interval", "LawTest", "LeaveOneOut", "ModeGap", "ParetoK"),
    *(
        "EnsembleCurve",
        "EnsembleEquivalent",
        "RealizedNoise",
        "RealizedNoises",
        "Evaluation",
        "RiskCurve",
        "Uniformity",
        "EffectiveBatchSizes",
        "Cell",
        "Rendered",
    ),
    # Records of studies of one's own, held against their annotations where a study runs.
    *("Column", "Entry", "Job", "Method", "Outcome", "Place", "Plot", "Results", "Row", "Section"),
    *("Compare", "NoiseChoices", "TrainingNoise", "UncertaintyUci"),  # made by study.make_study
    *("Split", "TableSplit"),  # pairs, which ImageData and TabularData look at
    *("affine", "affine_each", "centre_and_covary", "Moments"),  # of layers, within their calls
    "init_to_neutral",  # called by Pyro, with its sites
    "run_checks",  # tests of classes of one's own, which are to fail
}
"""Public names with arguments that are in no case."""


def reason_for(outcome: str, case: str, argument: str, value: str) -> str | None:
    """Why a call that is not refused by name is right as it is; None if there is no reason."""
    for rule in RAW if outcome == "raw" else ANSWERS:
        if _holds(rule, case, argument, value):
            return rule[3]
    return None


def rules_without_use(calls: Iterable[Call]) -> list[str]:
    """Reasons that no call needs any more."""
    found = [call for call in calls if call[4] in ("raw", "answer")]
    return [
        f"{outcome}: {rule[:2]}, {value}"
        for outcome, rules in (("raw", RAW), ("answer", ANSWERS))
        for rule in rules
        for value in sorted(rule[2])
        if not any(c[4] == outcome and c[3] == value and _holds(rule, *c[:2], value) for c in found)
    ]


def _holds(rule: tuple[str, str, set[str], str], case: str, argument: str, value: str) -> bool:
    pattern, name, values, _ = rule
    return fnmatch(case, pattern) and fnmatch(argument, name) and value in values
