"""The quantities that tables show, and their definitions."""

from __future__ import annotations

from pyronorm.study.table import Better, Column

__all__ = ["COLUMNS", "columns"]

_LOW, _HIGH, _NEITHER = Better.LOWER, Better.HIGHER, Better.NEITHER

_ALL = (
    Column(
        "accuracy", "accuracy", 3, _HIGH, "Share of examples whose most probable class is right."
    ),
    Column("nll", "NLL", 3, _LOW, "Mean negative log predictive probability, in nats."),
    Column(
        "nll_center",
        "NLL, no averaging",
        3,
        _LOW,
        "NLL with the latents at the center of the posterior (mean shift, geometric mean scale) "
        "instead of averaged over draws.",
    ),
    Column(
        "ece",
        "ECE",
        3,
        _LOW,
        "Expected calibration error of the most probable class, 15 bins of equal width.",
    ),
    Column(
        "calibrated_nll",
        "calibrated NLL",
        3,
        _LOW,
        "NLL at a temperature: each tenth of the test data at the one that is best for the rest.",
    ),
    Column("calibrated_ece", "calibrated ECE", 3, _LOW, "ECE at these temperatures."),
    Column(
        "difference",
        "difference",
        3,
        _LOW,
        "Calibrated NLL minus that of the baseline with the same seed, mean and its 95 % interval, "
        "each on its own; below 0 is better.",
        interval=True,
    ),
    Column("brier", "Brier", 3, _LOW, "Squared error of the probabilities, summed over classes."),
    Column("calibrated_brier", "calibrated Brier", 3, _LOW, "Brier score at these temperatures."),
    Column(
        "aurc",
        "AURC",
        4,
        _LOW,
        "Area under the risk-coverage curve: share of errors among the most confident examples, "
        "averaged over how many are kept.",
    ),
    Column(
        "realized_noise",
        "realized n",
        0,
        _NEITHER,
        "One over the variance of what the latents add to standardized data: the shift, and what noise "
        "of the scale does to a mean that is not 0; geometric mean over layers.",
    ),
    Column(
        "auroc",
        "AUROC",
        3,
        _HIGH,
        "Area under the ROC curve of telling test images from the out-of-distribution set by the "
        "entropy of the prediction.",
    ),
    Column(
        "fpr95",
        "FPR95",
        3,
        _LOW,
        "Share of out-of-distribution images taken for test images when 95 % of those are.",
    ),
    Column(
        "auroc_information",
        "AUROC, information",
        3,
        _HIGH,
        "The same by the mutual information of prediction and draws, which one draw has not.",
    ),
    Column(
        "fpr95_information", "FPR95, information", 3, _LOW, "FPR95 by the mutual information, too."
    ),
    Column(
        "values",
        "n, values",
        0,
        _NEITHER,
        "Effective batch size: how many independent Gaussian values scatter as much; that of the law "
        "itself, that of a bank by maximum likelihood, geometric mean over layers.",
    ),
    Column(
        "seconds",
        "time, s",
        1,
        _NEITHER,
        "Seconds after training, choices included, on this machine.",
    ),
    Column(
        "share",
        "of training",
        3,
        _NEITHER,
        "These seconds over those of the training of one network.",
    ),
    Column(
        "chosen",
        "n or T",
        1,
        _NEITHER,
        "The batch size chosen on validation images, or learned (geometric mean over layers); the "
        "temperature.",
    ),
    Column("rmse", "RMSE", 3, _LOW, "Root mean squared error, in units of the target."),
    Column("train_seconds", "training, s", 0, _NEITHER, "Seconds of training, on this machine."),
    Column(
        "relative_train_time",
        "training, times",
        1,
        _NEITHER,
        "Time of training, with the bank where one is needed, over that of the baseline with the same "
        "seed.",
    ),
    Column("rate", "rate", 4, _NEITHER, "Learning rate, chosen on held-out training images."),
    Column(
        "choice_seconds",
        "choice, s",
        0,
        _NEITHER,
        "Seconds that the choice of the rate took, besides the training.",
    ),
    Column(
        "predict_ms",
        "a draw, ms",
        1,
        _NEITHER,
        "Milliseconds to predict the test data, per draw, the fastest of the repeats; without draws the "
        "fixed costs of a prediction stand beside a single one.",
    ),
)

COLUMNS = {column.name: column for column in _ALL}
"""Columns that several studies show, by name."""


def columns(*names: str) -> tuple[Column, ...]:
    """Some of the columns."""
    return tuple(COLUMNS[name] for name in names)
