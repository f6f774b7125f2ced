"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import comparison, correctness, speed, tables
from benchmarks.gpu.images import FORMS
from benchmarks.gpu.methods import NETWORKS
from benchmarks.gpu.run import Part, Settings, attempted, environment
from benchmarks.timing import RESULTS

PARTS: dict[str, tuple[Callable[[Part], None], float]] = {
    "correctness": (correctness.run, 120.0),
    "speed": (speed.run, 280.0),
    "comparison": (comparison.run, 300.0),
}
"""What runs a part, and its seconds unless others are given."""

TINY_OUTPUT = Path("results/gpu-tiny")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, write their files and the tables.

    Returns:
        0; 1 where a case failed or is not right.
    """
    options = parser().parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tiny = options.tiny or device.type == "cpu"
    if tiny and not options.tiny:
        print("No GPU: everything runs at tiny size on the CPU, to see that it runs. No result.")
    output = options.output or (TINY_OUTPUT if tiny else RESULTS)
    settings = Settings(
        device=device,
        tiny=tiny,
        compiled=not options.no_compile,
        data=tuple(options.data),
        output=output,
        networks=tuple(options.network or NETWORKS),
        epochs=options.epochs,
        seeds=tuple(range(options.first_seed, options.first_seed + options.seeds)),
    )
    print(", ".join(f"{k} {v}" for k, v in environment(device).items() if v is not None))
    failed = 0
    for name, seconds in options.part or [(name, None) for name in PARTS]:
        run, usual = PARTS[name]
        part = Part(name, settings, seconds or usual, keep=name == "comparison")
        print(f"\n{name}, {seconds or usual:g} s at most", flush=True)
        error = attempted(lambda run=run, part=part: run(part) or {})
        if error:
            part.add({"case": f"{name} as a whole", **error})
        part.save()
        failed += len(part.failed)
        print(f"{name}: {len(part.rows)} rows, {len(part.failed)} failed", flush=True)
    tables.write(output)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=(
            "Is the library right on a GPU, how fast is it there, and what comes out on CIFAR-10. "
            "Without a GPU everything runs at tiny size on the CPU."
        ),
    )
    parser.add_argument(
        "--part",
        action="append",
        type=_part,
        metavar="NAME[=SECONDS]",
        help="a part (correctness, speed, comparison) and after how many seconds it starts no "
        "further case; again for several; all by default: "
        + ", ".join(f"{name}={seconds:g}" for name, (_, seconds) in PARTS.items()),
    )
    parser.add_argument(
        "--data",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="folder with CIFAR-10 or parts of it, or with the folders of all data sets; again for "
        f"several. Read are {FORMS}",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"for gpu-NAME.json and gpu.md: {RESULTS.parent.name}/{RESULTS.name}, at tiny size "
        f"{TINY_OUTPUT}. The comparison goes on from the rows that are there",
    )
    parser.add_argument(
        "--network",
        action="append",
        choices=NETWORKS,
        help="network of the comparison; again for several; both by default",
    )
    parser.add_argument("--epochs", type=int, default=20, help="of the comparison, 20 by default")
    parser.add_argument(
        "--seeds", type=int, default=2, metavar="N", help="seeds of the comparison, 2 by default"
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="SEED", help="the first of them, 0 by default"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--tiny", action="store_true", help="tiny size on a GPU, too")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; by default a GPU where there is one")
    return parser


def _part(text: str) -> tuple[str, float | None]:
    name, _, seconds = text.partition("=")
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}, got {name!r}")
    try:
        return name, float(seconds) if seconds else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name}: expected seconds, got {seconds!r}") from None
