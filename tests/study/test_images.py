"""The images of a study."""

from __future__ import annotations

from dataclasses import replace

import torch

from pyronorm import datasets
from pyronorm.study import Place
from pyronorm.study.images import joint_note, load_images


def test_a_part_with_every_class_in_its_share() -> None:
    data = load_images("digits", 3, Place(), 200, 100)
    assert (len(data.train.y), len(data.test.y)) == (200, 100)
    whole = datasets.load("digits", 3)
    share = torch.bincount(whole.train.y) * 200 / len(whole.train.y)
    assert ((torch.bincount(data.train.y) - share).abs() < 1).all()


def test_the_seed_decides_split_and_choice() -> None:
    a, again, b = (load_images("digits", seed, Place(), 50) for seed in (1, 1, 2))
    assert torch.equal(a.train.x, again.train.x)
    assert not torch.equal(a.train.x, b.train.x)
    assert torch.equal(load_images("digits", 1, Place()).test.x, datasets.load("digits", 1).test.x)


def test_each_note_once() -> None:
    data = datasets.load("digits")
    noted, other = replace(data, note="Some are missing."), replace(data, note="Half of it.")
    assert joint_note(data) == ""
    assert joint_note(noted, data, noted, other) == "Some are missing. Half of it."
