from __future__ import annotations

import pytest
from torch import nn

from tests.nets import SHAPES, conv_net, train_briefly


@pytest.fixture
def trained() -> nn.Module:
    return train_briefly(conv_net(2), SHAPES[2], steps=3)
