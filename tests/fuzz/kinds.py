"""Which kind of value an argument takes: by its name, which carries the convention of the library.

A name that is missing here fails the grid, so that a new argument is never left out in silence.
"""

from __future__ import annotations

import inspect

from tests.fuzz.values import VALUES

__all__ = ["bad_values", "kind_of"]

NOT_TRIED: dict[str, str] = {
    **dict.fromkeys(
        [
            *(
                "plain",
                "progress",
                "resume",
                "keep_samples",
                "include_inputs",
                "train_network",
                "jit",
            ),
            *("affine", "bias", "channel_last", "unbatched", "per_position", "learned", "neutral"),
            *(
                "download",
                "allow_incomplete",
                "flip",
                "cifar_stem",
                "augment_images",
                "force",
                "quick",
            ),
            *(
                "validate_args",
                "prior_predictive",
                "has_population",
                "density",
                "full_mass",
                "compile",
            ),
        ],
        "a flag: Python's truth, as everywhere",
    ),
    **dict.fromkeys(["where", "source", "note", "command", "question"], "text for messages"),
    **dict.fromkeys(["args", "kwargs", "changes", "options"], "not used, or checked one by one"),
}
"""Arguments without wrong values, and why."""

BY_NAME: dict[str, str] = {
    **dict.fromkeys(
        [
            *(
                "num_samples",
                "batch_size",
                "num_batches",
                "epochs",
                "every",
                "patience",
                "max_steps",
                "accumulate",
            ),
            *(
                "draws",
                "num_data",
                "samples_per_call",
                "num_chains",
                "max_tree_depth",
                "rows",
                "rank",
            ),
            *("population_batches", "num_flows", "num_groups", "channels_per_group", "bins"),
            *(
                "virtual_batch_size",
                "num_directions",
                "num_simulations",
                "num_draws",
                "block",
                "width",
            ),
            *(
                "iterations",
                "num_channels",
                "in_features",
                "out_features",
                "num_classes",
                "in_channels",
            ),
            *("depth", "widen_factor", "image_size", "num_validation", "num_train", "num_test"),
            *(
                "threads",
                "least_seeds",
                "processes",
                "bank_rows",
                "arviz_samples",
                "timed_predictions",
                "chains",
                "steps",
            ),
            *("particles", "directions", "components", "repeats"),
        ],
        "count",
    ),
    **dict.fromkeys(["warmup", "after", "padding", "num_sample_dims", "event_dim"], "count from 0"),
    **dict.fromkeys(
        [
            "lr",
            "gradient_clip_norm",
            "init_std",
            "shift_std",
            "log_scale_std",
            "concentration",
            "n",
        ],
        "positive",
    ),
    **dict.fromkeys(["value", "prior_precision", "damping", "guide_lr"], "positive"),
    **dict.fromkeys(["kl_weight", "min_std", "weight_decay", "eps", "spread"], "not negative"),
    **dict.fromkeys(
        [
            "target_accept",
            "confidence",
            "level",
            "coverage",
            "test_share",
            "dropout",
            "input_dropout",
        ],
        "probability",
    ),
    **dict.fromkeys(
        ["std", "scale", "df", "num_values", "input_std", "temperature"], "positive or tensor"
    ),
    "weight_plus": "number",
    "input_mean": "number",
    "log_likelihood": "number",
    "epochs_done": "number",
    "seed": "seed",
    "q": "level or levels",
    "quantiles": "level or levels",
    **dict.fromkeys(["shift", "vector"], "latents"),
    **dict.fromkeys(
        ["probabilities", "covariance", "samples", "mean", "uncertainty", "loss"],
        "finite",
    ),
    **dict.fromkeys(["reference", "a", "b", "inside", "outside", "cutpoints", "like"], "tensor"),
    "data": "pairs",
    "train_data": "pairs",
    "x": "input",
    "example_input": "input",
    "y": "finite",
    "weight": "finite",
    "network": "network",
    "model": "model",
    "guide": "guide",
    "posterior": "posterior",
    "likelihood": "likelihood",
    "prior": "prior",
    "normalizer": "normalizer",
    **dict.fromkeys(
        [
            *(
                "space",
                "bank",
                "optimization",
                "objective",
                "validation",
                "fabric",
                "elbo",
                "ax",
                "whiten",
            ),
            *("idata", "prediction", "sizes", "calibration", "correlation", "p", "table", "study"),
            *(
                "place",
                "train",
                "test",
                "settings",
                "training",
                "shape",
                "var",
                "log_density",
                "generator",
            ),
            *(
                "reference_mean",
                "reference_var",
                "ignore_index",
                "groups",
                "trainer",
                "factor",
                "norm",
            ),
            *(
                "report",
                "curvature",
                "start",
                "at",
                "mode",
                "rest",
                "weights",
                "structure",
                "z",
                "variance",
                "deviations",
            ),
        ],
        "object",
    ),
    **dict.fromkeys(
        ["augment", "optimizer", "scheduler", "step_scheduler", "fit", "function", "kind"],
        "callable",
    ),
    **dict.fromkeys(
        ["parts", "members", "columns", "candidates", "axes", "batches", "idatas", "levels"],
        "filled list",
    ),
    **dict.fromkeys(["callbacks", "layers", "keep", "then"], "list"),
    **dict.fromkeys(
        [
            "values",
            "hyper",
            "stats",
            "histories",
            "found",
            "scores",
            "curves",
            "predictions",
            "ratios",
        ],
        "mapping",
    ),
    **dict.fromkeys(["hyper", "stats", "others", "coords", "dims"], "mapping"),
    "record": "filled mapping",
    **dict.fromkeys(["latents", "distribution"], "object"),
    "num_folds": "count from 2",
    "outliers": "inputs",
    **dict.fromkeys(["hyperparameters"], "mapping"),
    **dict.fromkeys(["given", "make_guide", "marginal"], "callable"),
    **dict.fromkeys(["first_ranks", "ranks", "draws_curve"], "counts"),
    **dict.fromkeys(
        [
            *("dropouts", "after", "regularizers", "per_example", "learning_rates"),
            *("questions", "normalizers"),
        ],
        "names of one's own",
    ),
    **dict.fromkeys(["regularized_noise", "decay", "warm_up", "margin"], "positive"),
    "regularized_dropout": "probability",
    "statistics_batches": "count",
    "dtype": "object",
    "weights": "count from 0",
    **dict.fromkeys(["keeps", "class_names"], "names of one's own"),
    "fixed": "name",
    "calibrate_on": "pairs",
    "ignore_index": "index",
    "output": "part of an output",
    **dict.fromkeys(["batch_sizes", "channels", "normalized_shape", "hidden"], "counts"),
    "seeds": "numbers of seeds",
    **dict.fromkeys(["noise", "start"], "above 1"),
    "resampled": "not negative",
    **dict.fromkeys(["prefix", "title", "target_name", "weight_name", "bias_name"], "name"),
    **dict.fromkeys(["per", "learn", "layer", "method", "baseline"], "choice"),
    **dict.fromkeys(["only", "skip", "var_names", "names", "methods", "by", "within"], "names"),
    "feature_names": "names",
    "key": "choice",
    "name": "choice",
    "path": "file",
    "folder": "folder",
    "data_root": "folder",
    "device": "device",
    "layer_class": "object",
    "md5": "name",
    "precision": "choice",
    "network_name": "choice",
}

# Where the same name means something else.
OF_CASE: dict[tuple[str, str], str] = {
    ("guides.Flow", "hidden"): "count",
    ("CollectSWAG", "after"): "count from 0",
    ("CollectWeights", "after"): "count from 0",
    **{
        (case, "batch_size"): "above 1"
        for case in (
            *("priors.BatchNoise", "priors.HierarchicalBatchNoise", "guides.BatchNoise"),
            *("guides.EffectiveBatchSize", "MeanField.from_batch_size", "guides.Mixture"),
            "LowRank.from_batch_size",
        )
    },
    ("stats.shift_variance", "batch_size"): "above 1",
    **{
        (case, "batch_size"): "positive or tensor"
        for case in ("stats.log_var_mean", "stats.log_var_variance")
    },
    **{
        (case, "data"): "inputs"
        for case in (
            *("estimate_population_statistics", "collect_bank", "predict", "estimation_shift"),
            *(
                "standardize_latents",
                "input_shape",
                "Jackknife.intervals",
                "LastLayerLaplace.predict",
                "WeightSWAG.draw_networks",
                "predict_dropout",
            ),
            *("predict_linearized", "linearized_outputs"),
        )
    },
    **{
        (f"{kind}.{method}", "output"): "finite"
        for kind in ("Likelihood", "Normal")
        for method in ("log_prob", "predict", "scores", "expected")
    },
    **{(case, "values"): "filled mapping" for case in ("LatentNetwork.pack", "LatentSpace.pack")},
    ("likelihoods.Ordinal", "cutpoints"): "cutpoints",
    **{(case, "rank"): "count from 0" for case in ("collect_curvature", "Curvature.truncated")},
    ("compare", "idatas"): "filled mapping",
    ("plot_posterior_scale", "idatas"): "filled mapping",
    ("refresh_draws", "data"): "inputs",
    ("refresh_draws", "keep"): "list",
    ("realized_noise", "data"): "inputs",
    ("calibrate", "validation"): "pairs",
    ("calibrate", "train"): "inputs",
    ("calibrate", "candidates"): "filled mapping",
    ("ImageData", "name"): "name",
    ("laws.ShiftGivenScale", "shift"): "callable",
    ("laws.ScaleGivenShift", "scale"): "callable",
    ("laws.ShiftGivenScale", "scale"): "object",
    ("laws.ScaleGivenShift", "shift"): "object",
    **{("laws.Independent", name): "object" for name in ("shift", "scale")},
    ("priors.batch_noise_law", "df"): "tensor",
    ("conversion.own_statistics", "layer"): "object",
    ("conversion.Kind", "normalizer"): "normalizer",
    **{("conversion.Kind", name): "name" for name in ("weight", "bias")},
    ("study.frame", "rows"): "list",
    ("study.train", "normalizer"): "normalizer",
    ("study.train", "data"): "object",
    ("study.judge", "test"): "object",
    ("study.train", "seed"): "seed number",
    ("study.judge", "seed"): "seed number",
    ("study.train", "noise"): "above 1",
    ("study.Comparison", "name"): "name",
    ("Validation", "data"): "-",  # looked at when training begins
    ("StandardizedLatents", "data"): "-",  # the same
    ("NoiseSchedule", "batch_size"): "callable",
    **{
        (f"{room}.BatchNoise", name): "-"  # a flag
        for room in ("guides", "priors")
        for name in ("shift", "scale")
    },
    **{
        (f"{posterior}.draw", "data"): "-"  # not used
        for posterior in ("Draws", "StatisticsBank", "Guide", "Ensemble", "PyroGuide")
    },
    ("convert", "example_input"): "-",  # not looked at by normalizers that do not need it
    ("as_posterior", "model"): "-",  # for finished chains alone
    ("PyroGuide", "guide"): "callable",
    ("simulation_based_calibration", "report"): "callable",
    ("reference.run", "report"): "callable",
    ("reference.run", "candidates"): "list",
    ("study.Training", "augment"): "-",  # a flag
    ("study.Table", "rows"): "list",
    ("study.TrainingNoiseSettings", "members"): "count",
    **{(case, "width"): "positive" for case in ("VGG11", "AllCNN")},
    **{
        (case, "norm"): "function or None"
        for case in (
            *("MLP", "VGG11", "AllCNN", "CifarResNet", "LeNet5", "LeNet5.caffe", "ResNet18"),
            "WideResNet",
        )
    },
    ("fit_jackknife", "data"): "real pairs",
    ("mode_gap", "batch_size"): "count from 2",
    ("study.make_network", "data"): "object",
    ("channels", "layer"): "choice",
    ("fit_laplace", "layer"): "choice",
    ("plot_disturbance", "layer"): "choice",
    ("study.Settings", "data"): "choice",
    ("study.Settings", "network"): "choice",
    ("study.Settings", "training"): "object",
    ("guides.PopulationStatistics", "num_values"): "positive or tensor",
    ("StatisticsBank", "mean"): "latents",
    ("StatisticsBank", "var"): "scales",
    ("StatisticsBank", "reference_mean"): "latents",
    ("StatisticsBank", "reference_var"): "scales",
    ("StatisticsBank", "eps"): "scales",
    **{
        (case, "scale"): "scales"
        for case in (
            *("LatentNetwork.forward", "Draws", "laws.Rows", "laws.log_prob", "Prior.log_prob"),
            *("Prior.marginal_log_prob", "Guide.log_prob", "stats.effective_batch_size"),
        )
    },
    ("LatentNorm.forward", "x"): "layer input",
    ("Draws.to", "like"): "place",
    ("StatisticsBank.to", "like"): "place",
    ("laws.quantiles", "q"): "levels",
    ("laws.Rows", "shift"): "latents",
    ("compare_draws", "draws"): "tensor",
    ("correlation", "draws"): "tensor",
    ("latent_vectors", "draws"): "object",
    ("Mixture.component", "draws"): "object",
    ("plot_marginal", "draws"): "mapping",
    ("Temperature", "value"): "positive",
    ("InverseChi.log_prob", "value"): "tensor",
    ("DrawsOnly", "value"): "tensor",
    ("crps_normal_mixture", "std"): "scales",
    ("probabilistic_regression_metrics", "std"): "scales",
    ("MultivariateNormal", "std"): "scales",
    ("stats.merge_moments", "a"): "object",
    ("stats.merge_moments", "b"): "object",
    ("stats.effective_batch_size", "groups"): "tensor",
    ("plot_correlation", "correlation"): "finite",
    ("plot_correlation", "groups"): "mapping",
    ("plot_metric", "name"): "name",
    ("plot_marginal", "name"): "name",
    ("plot_outliers", "name"): "name",
    ("from_dataset", "name"): "name",
    ("Table", "name"): "name",
    ("PadCropFlip.images", "x"): "tensor",
    ("stats.channel_moments", "x"): "tensor",
    ("Table", "x"): "finite",
    ("normalizers.Analytic", "input_std"): "positive",
    ("normalizers.Layer", "normalized_shape"): "counts",
    ("LatentNorm", "ranks"): "counts",
    ("LatentNorm", "parts"): "mapping",
    ("reference.Settings", "chains"): "count",
    ("reference.Settings", "prior"): "prior",
    ("study.center", "guide"): "guide",
    ("study.write_report", "path"): "folder",
    ("study.run_study", "path"): "folder",
    ("study.Folder", "path"): "folder",
    ("save", "path"): "target",
    ("Draws.save", "path"): "target",
    ("StatisticsBank.save", "path"): "target",
    ("study.Training", "precision"): "choice",
    ("Prediction.sample", "seed"): "seed",
    ("corrupt", "images"): "tensor",
    ("corrupt", "corruption"): "choice",
    ("corrupt", "severity"): "count from 0",
    ("corrupt", "first"): "count from 0",
    ("ensemble_curve", "predictions"): "filled list",
    ("ensemble_curve", "subsets"): "count",
    ("ensemble_curve", "folds"): "count",
    ("ensemble_equivalent", "curves"): "finite",
    ("ensemble_equivalent", "nll"): "finite",
}


def kind_of(case: str, name: str, parameter: inspect.Parameter) -> str | None:
    """The kind of an argument, None for one that is not tried.

    Raises:
        KeyError: if its name is not known.
    """
    special = OF_CASE.get((case, name))
    if special is not None:
        return special
    if name in NOT_TRIED:
        return None
    return BY_NAME[name]


def bad_values(case: str, name: str, parameter: inspect.Parameter) -> list[tuple[str, str]]:
    """Kind and name of every value to try; None is right where it is the default."""
    kind = kind_of(case, name, parameter)
    if not kind or kind == "-":
        return []
    fine = {"None"} if parameter.default is None or "None" in str(parameter.annotation) else set()
    return [(kind, value) for value in VALUES[kind] if value not in fine]
