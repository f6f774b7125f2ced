"""Convert real architectures of other packages, with random weights, and write down what came of it.

Needs an environment of its own: torchvision, timm, transformers, MONAI, diffusers, torch_geometric and
segmentation-models-pytorch beside pyronorm. For each family:
are all normalization layers converted, is the copy exact in evaluation mode (1e-4), has it the same
``state_dict`` keys, does a step of training run, and a prediction?

    python -m benchmarks.zoo timm torchvision transformers
    python -m benchmarks.zoo timm --only resnet26 swin_tiny_patch4_window7_224

Results go to ``benchmarks/results/zoo.json`` and the table ``docs/results/zoo.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyronorm as pn
from benchmarks.zoo_more import DIFFUSERS, GRAPHS, MEDICAL, SEGMENTATION_MODELS, Selected
from benchmarks.zoo_transformers import CONFIGURATIONS, SKIPPED, build_transformer

RESULTS = Path(__file__).parent / "results" / "zoo.json"
TABLE = Path(__file__).parents[1] / "docs" / "results" / "zoo.md"
CLASSES = 5
CHECKS = ("exact", "keys", "fit", "predict")
# Rows that are converted to another normalizer.
OTHER = {"gpt2, to Group(4)": pn.normalizers.Group(4)}


def _words(text: str) -> list[str]:
    return text.split()


TIMM = _words("""
resnet26 resnet10t seresnet18 ecaresnet26t skresnet18 resnest14d res2net50_26w_4s
efficientnet_b0 tf_efficientnetv2_b0 mobilenetv3_small_050 mobilenetv4_conv_small mixnet_s
ghostnet_050 regnety_002 resnetv2_50 resnetv2_50d_gn resnet50_gn densenet121 densenetblur121d
dla34 dpn48b vovnet39a ese_vovnet19b_dw hrnet_w18_small inception_v4 inception_resnet_v2
xception41 cspresnet50 darknet17 selecsls42 repvgg_a0 rexnet_100 tresnet_m vgg11_bn
convnext_atto convnextv2_atto vit_tiny_patch16_224 deit_tiny_patch16_224
vit_relpos_small_patch16_224 vit_tiny_r_s16_p8_224 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 beit_base_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 coat_lite_tiny
levit_128s pit_ti_224 poolformer_s12 poolformerv2_s12 caformer_s18 maxvit_pico_rw_256
coatnet_nano_rw_224 mobilevit_xxs mobilevitv2_050 edgenext_xx_small efficientformer_l1
efficientvit_b0 efficientvit_m0 fastvit_t8 resnetv2_50d_evos convnext_atto_rms nfnet_l0 nf_resnet26
""")

VISION = _words("""
resnet18 resnext50_32x4d wide_resnet50_2 densenet121 efficientnet_b0 efficientnet_v2_s googlenet
inception_v3 mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf
shufflenet_v2_x0_5 vgg11_bn convnext_tiny swin_t swin_v2_t vit_b_16 maxvit_t
""")
SEGMENTATION = [
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
]
VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "swin3d_t"]

# Sizes of images that a family insists on; others take small ones.
_SIZES = {
    "inception_v3": 299, "inception_v4": 128, "inception_resnet_v2": 128, "vit_b_16": 224,
    "maxvit_t": 224, "mvit_v1_b": 224, "s3d": 224, "deeplabv3_resnet50": 32, "fcn_resnet50": 32,
}  # fmt: skip


def first_output(y: Any) -> Tensor:
    """The tensor of a network's output that is trained on."""
    if isinstance(y, Tensor):
        return y
    if isinstance(y, dict):
        return y["out"]
    return y[0]  # auxiliary heads of GoogLeNet and Inception in training


def timm_network(name: str) -> tuple[nn.Module, Tensor]:
    """A timm network and a batch for it."""
    import timm

    network = timm.create_model(name, num_classes=CLASSES)
    size = network.default_cfg["input_size"][1]
    fixed = network.default_cfg.get("fixed_input_size") or any(
        part in name for part in ("vit", "swin", "beit", "cait", "xcit", "coat", "maxvit", "former")
    )
    if not fixed:
        size = _SIZES.get(name, 64)
    return network, torch.randn(4, 3, size, size)


def torchvision_network(name: str) -> tuple[nn.Module, Tensor]:
    """A torchvision network and a batch for it."""
    from torchvision import models

    options: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if name in SEGMENTATION:
        options |= {"weights_backbone": None}
        if name != "lraspp_mobilenet_v3_large":
            options |= {"aux_loss": True}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    network = models.get_model(name, **options)
    size = _SIZES.get(name, 64)
    shape = (3, 16, size, size) if name in VIDEO else (3, size, size)
    return Selected(network, first_output), torch.randn(4, *shape)


def transformers_network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of transformers from a small configuration, and a batch for it."""
    return build_transformer(name, CLASSES)


PACKAGES: dict[str, tuple[list[str], Callable[[str], tuple[nn.Module, Tensor]]]] = {
    "timm": (TIMM, timm_network),
    "torchvision": ([*VISION, *SEGMENTATION, *VIDEO], torchvision_network),
    "transformers": (list(CONFIGURATIONS), transformers_network),
    "MONAI": (list(MEDICAL), lambda name: MEDICAL[name]()),
    "segmentation-models-pytorch": (
        list(SEGMENTATION_MODELS),
        lambda name: SEGMENTATION_MODELS[name](),
    ),
    "diffusers": (list(DIFFUSERS), lambda name: DIFFUSERS[name]()),
    "torch_geometric": (list(GRAPHS), lambda name: GRAPHS[name]()),
}


NONE = "has no normalization layer"


def examine(build: Callable[[str], tuple[nn.Module, Any]], name: str) -> dict[str, Any]:
    """Convert one family, and try it; an error ends the trial and is noted."""
    normalizer = OTHER.get(name)
    row: dict[str, Any] = {"layers": 0, "exact": None, "keys": None, "fit": None, "predict": None}
    torch.manual_seed(0)
    start = time.perf_counter()
    try:
        network, x = build(name)
        with torch.no_grad():
            network.train()(x)  # population statistics that are not 0 and 1
            network.eval()
            converted = pn.convert(network, normalizer, skip=SKIPPED.get(name, ()))
            report = pn.conversion_report(converted)
            row["layers"], row["kinds"] = (
                report.num_layers,
                sorted({r.original for r in report.converted}),
            )
            row["left"] = [r.original for r in report.unconverted]
            expected, found = network(x), converted.eval()(x)
        difference = float(((found - expected).abs() / (1 + expected.abs())).max())
        if normalizer is None:  # another one computes another function
            row["difference"], row["exact"] = difference, difference < 1e-4
        row["keys"] = list(network.state_dict()) == list(converted.state_dict())
        del network
        model = pn.NormalizationModel(converted, pn.likelihoods.Categorical(), num_data=len(x))
        guide = pn.guides.MeanField(model)
        y = torch.arange(len(x)) % found.shape[1]
        history = pn.fit(model, guide, (x, y), epochs=1, batch_size=len(x), progress=False)
        row["fit"] = bool(torch.tensor(history.losses[-1]).isfinite())
        prediction = pn.predict(model, guide, x, num_samples=2)
        row["predict"] = bool(prediction.mean.isfinite().all())
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def is_good(row: dict[str, Any], name: str) -> bool:
    """Whether all has gone well; to another normalizer the function changes."""
    return all(row[key] for key in CHECKS if key != "exact" or name not in OTHER)


def lines(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The table, in Markdown."""
    yield "# Real networks"
    yield ""
    yield (
        "What `pn.convert` makes of architectures of other packages with random weights "
        "(`python -m benchmarks.zoo`): are all their normalization layers converted, is the copy exact "
        "in evaluation mode (largest relative difference below 1e-4), are the `state_dict` keys the "
        "same, does a training step run, and a prediction?"
    )
    for package, rows in results.items():
        good = sum(is_good(row, name) for name, row in rows.items())
        none = sum(NONE in row.get("error", "") for row in rows.values())
        rest = f" ({none} without normalization, which is what convert says)" if none else ""
        yield ""
        yield f"## {package}: {good} of {len(rows)}{rest}"
        yield ""
        yield "| Network | layers | classes | exact | keys | fit | predict | |"
        yield "|---|---:|---|---|---|---|---|---|"
        for name, row in rows.items():
            marks = " | ".join(
                {True: "yes", False: "no", None: "-"}[row[k]]
                for k in ("exact", "keys", "fit", "predict")
            )
            note = row.get("error", "").replace("|", "/")
            if row.get("left"):
                note = f"left: {', '.join(sorted(set(row['left'])))} {note}"
            yield f"| {name} | {row['layers']} | {', '.join(row.get('kinds', []))} | {marks} | {note} |"
    yield ""


def main() -> None:
    """Try the packages named, one network at a time, and keep what is known of others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="+", choices=PACKAGES)
    parser.add_argument("--only", nargs="*", default=None)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for package in arguments.packages:
        names, build = PACKAGES[package]
        for name in arguments.only or names:
            row = examine(build, name)
            results.setdefault(package, {})[name] = row
            results[package] = {n: results[package][n] for n in names if n in results[package]}
            good = is_good(row, name)
            print("ok " if good else "NO ", package, name, row, flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            TABLE.write_text("\n".join(lines(results)))
            gc.collect()


if __name__ == "__main__":
    main()
