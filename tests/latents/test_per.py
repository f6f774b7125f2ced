from __future__ import annotations

import pytest

from pyronorm.latents import LatentLayer, LatentSpace, Per

SPACE = LatentSpace(
    (LatentLayer("a", 2, "Batch"), LatentLayer("b", 3, "Group"), LatentLayer("c", 1, "Batch"))
)


@pytest.mark.parametrize(
    ("per", "groups", "last"),
    [
        (Per.NETWORK, [0, 0, 0, 0, 0, 0], "network"),
        (Per.LAYER, [0, 0, 1, 1, 1, 2], "c"),
        (Per.CHANNEL, [0, 1, 2, 3, 4, 5], "c[0]"),
    ],
)
def test_groups_and_labels(per, groups, last):
    assert per.groups(SPACE).tolist() == groups
    labels = per.labels(SPACE)
    assert len(labels) == max(groups) + 1
    assert labels[-1] == last
