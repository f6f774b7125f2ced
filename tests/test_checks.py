from __future__ import annotations

import numpy as np
import pytest

from pyronorm.checks import check_count, check_instance, check_positive
from pyronorm.errors import OptionError


def test_counts():
    for good in (1, 7, np.int64(3)):
        check_count("f", "n", good)
    check_count("f", "n", 0, least=0)
    for bad in (0, -1, 1.0, True, None, "1", float("nan")):
        with pytest.raises(OptionError, match="f: n must be at least 1, an integer, got"):
            check_count("f", "n", bad)


def test_positive_numbers():
    for good in (1, 1e-9, np.float32(2)):
        check_positive("f", "lr", good)
    for bad in (0, -1.0, True, None, "1", float("nan"), float("inf")):
        with pytest.raises(OptionError, match="f: lr must be a finite number above 0, got"):
            check_positive("f", "lr", bad)


def test_instances():
    check_instance("f", "x", 3, int, "3")
    with pytest.raises(OptionError, match="f: x must be a int, such as 3, got the class int"):
        check_instance("f", "x", int, int, "3")
    with pytest.raises(OptionError, match="got str"):
        check_instance("f", "x", "3", int, "3")
