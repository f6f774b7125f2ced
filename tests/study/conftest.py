"""What several studies' tests begin with."""

from __future__ import annotations

from functools import partial

import pytest

from pyronorm.networks import LeNet5
from pyronorm.study import architectures


@pytest.fixture
def small_lenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """``lenet-5`` is a tiny one, for the digits."""
    network = partial(LeNet5, channels=(4, 8), hidden=(16,), padding=4, image_size=8)
    monkeypatch.setattr(architectures, "NETWORKS", {"lenet-5": network})
