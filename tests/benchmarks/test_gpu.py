"""``python -m benchmarks.gpu`` at tiny size, as it runs where there is no GPU."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.gpu import command, comparison, tables
from benchmarks.gpu.methods import FROM_BANK, METHODS
from tests.datasets.builders import byte_images, cifar_binary

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """Parts of CIFAR-10 in two folders and two forms; three of the training files are missing."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    for path, count, seed in (
        (first / "data_batch_1.bin", 70, 0),
        (second / "test_batch.bin", 40, 1),
    ):
        labels = np.random.default_rng(seed).integers(0, 10, count).tolist()
        path.write_bytes(cifar_binary(byte_images(count, seed), labels))
    write_sheet(second / "train-3.webp", byte_images(60, 2), np.arange(60) % 10)
    return [first, second]


def write_sheet(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """50 images a row, row by row; the last row is filled up with black."""
    rows = -(-len(pixels) // 50)
    padded = np.zeros((rows * 50, 3, 32, 32), np.uint8)
    padded[: len(pixels)] = pixels.reshape(-1, 3, 32, 32)
    grid = padded.reshape(rows, 50, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    Image.fromarray(grid.reshape(rows * 32, 50 * 32, 3)).save(path, lossless=True)
    np.savez(path.with_suffix(".npz"), labels=labels.astype(np.uint8))


def rows(folder: Path, part: str) -> list[dict]:
    return json.loads((folder / f"gpu-{part}.json").read_text())["rows"]


def test_everything_runs_and_is_right(folders, tmp_path):
    data = [option for folder in folders for option in ("--data", str(folder))]
    arguments = ["--device", "cpu", "--seeds", "1", "--output", str(tmp_path / "out"), *data]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert "No GPU: everything runs at tiny size" in result.stdout
    for part in command.PARTS:
        found = rows(tmp_path / "out", part)
        assert found
        assert not [row for row in found if "error" in row or row.get("right") is False]
    compared = {(r["network"], r["method"]) for r in rows(tmp_path / "out", "comparison")}
    assert len(compared) == 2 * (len(METHODS) + len(FROM_BANK))
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "no result" in table
    assert "130 training and 40 test images, an incomplete copy" in table
    assert "the first 96 and 40 of them" in table
    assert "Failed" not in table


def test_further_seeds_leave_finished_ones_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "METHODS", {"weight, point": METHODS["weight, point"]})
    arguments = [
        "--tiny",
        "--part",
        "comparison",
        "--network",
        "all-cnn",
        "--output",
        str(tmp_path),
    ]
    assert command.main([*arguments, "--seeds", "1"]) == 0
    (first,) = rows(tmp_path, "comparison")
    assert command.main([*arguments, "--seeds", "2"]) == 0
    again, second = rows(tmp_path, "comparison")
    assert again == first
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["nll"] != second["nll"]
    assert "| weight, point | 0, 1 |" in (tmp_path / "gpu.md").read_text()
    assert command.main([*arguments, "--seeds", "2", "--epochs", "7"]) == 0  # tiny: always 1 epoch
    assert rows(tmp_path, "comparison") == [first, second]


def test_a_failed_case_is_a_row_and_is_run_again(tmp_path, monkeypatch):
    def broken(model):
        raise ZeroDivisionError("on purpose")

    method = METHODS["weight, point"]
    bad = comparison.replace(method, guide=broken)
    monkeypatch.setattr(comparison, "METHODS", {"bad": bad, "weight, point": method})
    arguments = [
        "--tiny",
        "--part",
        "comparison",
        "--network",
        "all-cnn",
        "--output",
        str(tmp_path),
    ]
    assert command.main([*arguments, "--seeds", "1"]) == 1
    failed, good = rows(tmp_path, "comparison")
    assert failed["error"].startswith("ZeroDivisionError: on purpose (test_gpu.py:")
    assert "nll" in good
    assert "- all-cnn, bad: ZeroDivisionError" in (tmp_path / "gpu.md").read_text()
    monkeypatch.setattr(comparison, "METHODS", {"bad": method, "weight, point": method})
    assert command.main([*arguments, "--seeds", "1"]) == 0
    assert rows(tmp_path, "comparison")[0] == good


def test_a_bank_that_was_not_judged_is_made_again(tmp_path):
    arguments = [
        "--tiny",
        "--part",
        "comparison",
        "--network",
        "all-cnn",
        "--output",
        str(tmp_path),
    ]
    assert command.main([*arguments, "--seeds", "1"]) == 0
    path = tmp_path / "gpu-comparison.json"
    content = json.loads(path.read_text())
    content["rows"] = [row for row in content["rows"] if row["method"] != "batch, stochastic"]
    path.write_text(json.dumps(content))
    assert command.main([*arguments, "--seeds", "1"]) == 0
    methods = [row["method"] for row in rows(tmp_path, "comparison")]
    assert sorted(methods) == sorted([*METHODS, *FROM_BANK])


def test_what_does_not_fit_is_named(tmp_path):
    assert command.main(["--tiny", "--part", "speed=0.01", "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "gpu-speed.json").read_text())
    assert not content["rows"]
    assert "training step, 4 images: plain" in content["left_out"]
    assert "Left out for lack of time: training step" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_as_a_whole_is_a_row(tmp_path):
    arguments = ["--tiny", "--part", "comparison", "--data", str(tmp_path / "nowhere")]
    assert command.main([*arguments, "--output", str(tmp_path)]) == 1
    (row,) = rows(tmp_path, "comparison")
    assert "no training images" in row["error"]
    assert "train-1.webp" in row["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "everything"], "expected one of correctness, speed, comparison"),
        (["--part", "speed=soon"], "speed: expected seconds, got 'soon'"),
        (["--network", "vgg"], "invalid choice"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("page", ["benchmarks/README.md", "docs/results/gpu.md"])
def test_commands_of_the_documentation(page):
    lines = (ROOT / page).read_text().splitlines()
    commands = [line.partition("python -m benchmarks.gpu ")[2] for line in lines]
    commands += [line.partition('make gpu OPTIONS="')[2].rstrip('"') for line in lines]
    for found in filter(None, commands):
        options = shlex.split(found.partition("`")[0])
        if options != ["--help"]:
            command.parser().parse_args(options)


def test_tables_without_a_run(tmp_path):
    assert tables.write(tmp_path).read_text().count("No run has been made.") == 3


def test_the_committed_tables_are_those_of_the_committed_files(tmp_path):
    results = ROOT / "benchmarks" / "results"
    for path in results.glob("gpu-*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert tables.write(tmp_path).read_text() == (results / "gpu.md").read_text()
