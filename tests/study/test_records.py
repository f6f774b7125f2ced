"""JSON files that are whole and unchanged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pyronorm.errors import DataError
from pyronorm.study.records import read_record, write_record


def test_what_was_written_is_read(tmp_path: Path) -> None:
    record = {
        "text": "Zürich",
        "nan": math.nan,
        "inf": -math.inf,
        "numpy": np.float32(0.5),
        "parts": (1, {"a": [True, None]}),
    }
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json", "no") == {
        "text": "Zürich",
        "nan": None,
        "inf": "-inf",
        "numpy": 0.5,
        "parts": [1, {"a": [True, None]}],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ('{"rows": [', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        ("[]", "it has no JSON object"),
        ("{}", "it has no checksum"),
        ('{"a": 1, "checksum": "0"}', "its checksum is not that of its content"),
    ],
)
def test_what_is_damaged_is_named_with_the_remedy(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message) as error:
        read_record(file, "mend it")
    assert str(error.value).startswith(str(file))
    assert str(error.value).endswith(": mend it.")


def test_a_change_of_any_value_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    write_record(file, {"a": 0.125, "b": ["x"], "c": None})
    whole = json.loads(file.read_text())
    for change in ({"a": 0.1250001}, {"b": ["y"]}, {"c": 0}, {"d": 1}):
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(DataError, match="checksum"):
            read_record(file, "mend it")
    with pytest.raises(DataError, match="cannot be read .No such file"):
        read_record(tmp_path / "none.json", "mend it")
