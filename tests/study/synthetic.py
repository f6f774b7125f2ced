"""A tiny CIFAR-10 in the official binary layout, whose classes can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.datasets.builders import cifar_binary, write


def write_cifar10(root: Path, per_file: int = 20, seed: int = 0) -> None:
    """Write all six files, with so many images each; class k has a bright stripe at row 3k."""
    generator = np.random.default_rng(seed)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name in names:
        labels = [int(k) for k in np.arange(per_file) % 10]
        images = generator.integers(0, 90, (per_file, 3, 32, 32))
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 3] += 150
        pixels = images.reshape(per_file, -1).astype(np.uint8)
        write(root / "cifar10" / name, cifar_binary(pixels, labels))
