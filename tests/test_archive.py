import json
import os
import random

import pytest
import torch

import pyronorm.archive
from pyronorm.archive import _place, read_archive, write_archive
from pyronorm.errors import FileError, OptionError

TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.arange(5),
    "half": torch.randn(2, 2).bfloat16(),
    "view": torch.randn(4, 4).T[1:],
    "empty": torch.zeros(0, 3),
}
CONTENT = {"name": 'Zürich "quoted" \\', "sha256": "0" * 64, "list": [1, 2.5, None, True]}


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    write_archive(path, "thing", CONTENT, TENSORS)
    content, tensors = read_archive(path, "thing")
    assert content == CONTENT
    assert tensors.keys() == TENSORS.keys()
    for name, value in tensors.items():
        assert value.dtype == TENSORS[name].dtype
        assert torch.equal(value, TENSORS[name])
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    # a str will do, and the file is ordinary safetensors
    from safetensors import safe_open

    write_archive(str(path), "thing", {}, {"x": torch.ones(2)})
    with safe_open(path, "pt") as file:
        assert file.get_tensor("x").tolist() == [1, 1]


def test_a_change_of_any_byte_is_refused(tmp_path):
    path = tmp_path / "a"
    write_archive(path, "thing", CONTENT, TENSORS)
    blob = path.read_bytes()
    random.seed(0)
    places = {*range(0, 60), *range(len(blob) - 20, len(blob))}
    places |= set(random.sample(range(len(blob)), 200))
    for place in sorted(places):
        changed = bytearray(blob)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(bytes(changed))
        with pytest.raises(FileError, match=r"damaged|format|no file of pyronorm|holds a"):
            read_archive(path, "thing")
    for part in (blob[:-1], blob[: len(blob) // 2], blob[:5], b"", blob + b" "):
        path.write_bytes(part)
        with pytest.raises(FileError, match=r"damaged|no file of pyronorm"):
            read_archive(path, "thing")


def test_a_later_format_another_kind_and_no_file_are_named(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with pytest.raises(FileError, match="cannot be read, No such file"):
        read_archive(path, "thing")
    write_archive(path, "thing", {}, {})
    with pytest.raises(FileError, match="holds 'thing', expected 'model'"):
        read_archive(path, "model")
    monkeypatch.setattr(pyronorm.archive, "FORMAT", 7)
    write_archive(path, "thing", {}, {})
    monkeypatch.undo()
    with pytest.raises(FileError, match=r"format 7, .* knows formats up to 1"):
        read_archive(path, "thing")
    path.write_bytes(b"x" * 100)
    with pytest.raises(FileError, match="no file of pyronorm"):
        read_archive(path, "thing")
    # a safetensors file of someone else
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(FileError, match="no file of pyronorm"):
        read_archive(path, "thing")


def test_writing_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_archive(path, "thing", {"n": 1}, {})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="cannot be written, No space left"):
        write_archive(path, "thing", {"n": 2}, {})
    monkeypatch.undo()
    assert read_archive(path, "thing")[0] == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileError, match="cannot be written"):
        write_archive(tmp_path / "none" / "a", "thing", {}, {})


def test_content_is_json_within_the_head(tmp_path):
    path = tmp_path / "a"
    write_archive(path, "thing", CONTENT, {"x": torch.ones(1)})
    blob = path.read_bytes()
    head = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert json.loads(head["__metadata__"]["pyronorm"])["content"] == CONTENT


@pytest.mark.parametrize("path", [3, None, b"name"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(OptionError, match="expected the name of a file"):
        _place(path)
