"""What the settings of several studies refuse."""

from __future__ import annotations

import pytest

from pyronorm.errors import OptionError
from pyronorm.study.checks import check_data, check_least, check_outliers, check_seeds


def test_what_is_right_passes() -> None:
    check_data("digits")
    check_outliers("notmnist")
    check_outliers("mnist")
    check_least("epochs", 3, 3)
    check_seeds((4, 0))


@pytest.mark.parametrize(
    ("check", "arguments", "words"),
    [
        (check_data, ("notmnist",), "no data set 'notmnist'; choose from digits"),
        (check_outliers, ("letters",), "no data set 'letters'.*notmnist"),
        (check_least, ("epochs", 2, 3), "epochs must be at least 3, got 2"),
        (check_seeds, ((),), "seeds"),
        (check_seeds, ((1, 1),), "seeds must be different"),
        (check_seeds, ((-1,),), "not negative"),
    ],
)
def test_refusals(check, arguments, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check(*arguments)
