"""The files of a run as tables in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.run import Row, short

_METRICS = ("accuracy", "nll", "calibrated nll", "temperature", "ece", "brier", "aurc", "train s")
_HIDDEN = ("case", "table", "commit", "seconds", "right", "error")


def write(folder: Path) -> Path:
    """Write ``gpu.md`` beside the files of a run.

    Args:
        folder: holds ``gpu-NAME.json``, some of them at least.

    Returns:
        The file.
    """
    lines: list[str] = []
    for name, make in {
        "correctness": _correctness,
        "speed": _speed,
        "comparison": _comparison,
    }.items():
        path = folder / f"gpu-{name}.json"
        lines += [f"## {name.capitalize()}", ""]
        if not path.is_file():
            lines += ["No run has been made.", ""]
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        lines += [_origin(content), "", *make(content["rows"])]
        if content["left_out"]:
            lines += [f"Left out for lack of time: {', '.join(content['left_out'])}.", ""]
    target = folder / "gpu.md"
    target.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return target


def _origin(content: Mapping[str, Any]) -> str:
    keys = ("device", "torch", "cuda", "python", "pyro", "pyronorm")
    words = [f"{key} {content[key]}" for key in keys if content.get(key)]
    commits = sorted({row["commit"] for row in content["rows"] if row.get("commit")})
    if commits:
        words.append(f"commit {', '.join(commits)}")
    line = f"`{content['command']}`: {', '.join(words)}. {' '.join(content['notes'])}"
    return f"**Tiny size, to see that it runs: no result.** {line}" if content["tiny"] else line


def _correctness(rows: Sequence[Row]) -> list[str]:
    """The worst of each figure over the cases, and the cases that failed."""
    checked = [row for row in rows if "right" in row or "error" in row]
    failed = [row for row in checked if "error" in row or not row["right"]]
    lines = [f"{len(checked) - len(failed)} of {len(checked)} cases are right.", ""]
    kinds: dict[str, list[Row]] = {}
    for row in checked:
        kinds.setdefault(row["case"].split(",")[0], []).append(row)
    for kind, own in kinds.items():
        names = dict.fromkeys(k for row in own for k, v in row.items() if isinstance(v, float))
        names.pop("seconds", None)
        worst = [f"{name} {short(max(row.get(name, 0.0) for row in own))}" for name in names]
        if worst:
            lines.append(f"- {kind} ({len(own)}): largest relative errors {', '.join(worst)}")
    return [*lines, "", *_failures(failed)]


def _speed(rows: Sequence[Row]) -> list[str]:
    tables: dict[str, list[Row]] = {}
    for row in rows:
        tables.setdefault(row.get("table", ""), []).append(row)
    lines: list[str] = []
    for title, own in tables.items():
        shown = [row for row in own if "error" not in row and set(row) - set(_HIDDEN)]
        if not title:
            lines += [
                f"{row['case']}: " + ", ".join(f"{k} {short(row[k])}" for k in _figures(row)) + "."
                for row in shown
            ]
        elif shown:
            lines += [f"### {title[0].upper()}{title[1:]}", ""]
            lines += _grid(
                ("", "ms", "ratio", "quartiles", "peak GiB", "captured"),
                [
                    (
                        row["case"],
                        row.get("ms"),
                        row.get("ratio"),
                        f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
                        if "ratio_low" in row
                        else None,
                        row.get("peak GiB"),
                        f"no: {row['not captured']}" if "not captured" in row else None,
                    )
                    for row in shown
                ],
            )
        lines += ["", *_failures([row for row in own if "error" in row])]
    return lines


def _comparison(rows: Sequence[Row]) -> list[str]:
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    about = ("network", "epochs", "images", "device", "torch")
    for row in rows:
        if "method" in row and "error" not in row:
            key = tuple(row[name] for name in about)
            groups.setdefault(key, {}).setdefault(row["method"], []).append(row)
    lines: list[str] = []
    for key, found in groups.items():
        network, epochs, images, device, torch = key
        lines += [f"### {network}: {epochs} epochs of {images:,} images", ""]
        lines += [f"{device}, torch {torch}; mean and standard deviation over seeds.", ""]
        table = [
            (name, ", ".join(str(row["seed"]) for row in own), *(_spread(own, m) for m in _METRICS))
            for name, own in found.items()
        ]
        lines += [*_grid(("method", "seeds", *_METRICS), table), ""]
    return lines + _failures([row for row in rows if "error" in row])


def _spread(rows: Sequence[Row], name: str) -> str | None:
    values = [row[name] for row in rows if name in row]
    if not values:
        return None
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def _figures(row: Row) -> list[str]:
    return [key for key in row if key not in _HIDDEN]


def _failures(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    found = [f"- {row['case']}: {row.get('error') or 'not right, ' + _worst(row)}" for row in rows]
    return ["Failed:", "", *found, ""]


def _worst(row: Row) -> str:
    return ", ".join(f"{key} {short(row[key])}" for key in _figures(row))


def _grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table without the columns that are empty in every row."""
    kept = [0, *(i for i in range(1, len(head)) if any(row[i] is not None for row in rows))]
    body = [
        " | ".join("–" if row[i] is None else short(row[i]).replace("|", "/") for i in kept)
        for row in rows
    ]
    return [
        f"| {' | '.join(head[i] for i in kept)} |",
        "|" + "---|" * len(kept),
        *(f"| {line} |" for line in body),
    ]
