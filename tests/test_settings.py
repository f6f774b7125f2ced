from dataclasses import dataclass

import pytest
import torch

from pyronorm.errors import OptionError
from pyronorm.latents import LatentLayer, LatentSpace, Per
from pyronorm.normalizers import Batch, GroupWhitening, Normalizer
from pyronorm.settings import (
    arguments_of,
    class_named,
    decode,
    encode,
    lasting_name,
    name_of,
    settings_in_words,
)

VALUES = [
    3,
    0.1,
    None,
    True,
    "text",
    (1, (2.5, "a")),
    [1, [2]],
    {"tuple": 3, "x": {"tensor": 1}},
    Per.LAYER,
    Batch(eps=1e-3),
    GroupWhitening(2),
    LatentSpace((LatentLayer("bn", 3, "Batch"),), "p."),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_there_and_back(value):
    import json

    tensors = {}
    encoded = json.loads(json.dumps(encode(value, tensors, "x")))
    assert not tensors
    found = decode(encoded, tensors, "file")
    assert found == value
    assert type(found) is type(value)


def test_tensors_go_into_the_table():
    tensors = {}
    encoded = encode({"a": (torch.ones(2), torch.zeros(3))}, tensors, "x")
    assert set(tensors) == {"x.a.0", "x.a.1"}
    found = decode(encoded, tensors, "file")
    assert torch.equal(found["a"][1], torch.zeros(3))


@dataclass(frozen=True)
class Mine(Batch):
    more: int = 3


def test_a_class_of_ones_own_needs_its_base():
    encoded = encode(Mine(more=4), {}, "x")
    assert decode(encoded, {}, "file", Normalizer) == Mine(more=4)
    with pytest.raises(OptionError, match="not of pyronorm"):
        decode(encoded, {}, "file")


def test_no_module_is_imported():
    with pytest.raises(OptionError, match="needs the class Popen of the module subprocess"):
        class_named("subprocess:Popen", Normalizer, "file")
    with pytest.raises(OptionError, match="Import the module antigravity first"):
        class_named("antigravity:Mine", Normalizer, "file")
    assert class_named(name_of(Mine), Normalizer, "file") is Mine
    with pytest.raises(OptionError, match="not of pyronorm"):
        decode({"class": "subprocess:Popen", "fields": {"args": ["true"]}}, {}, "file")


def test_a_class_of_a_script_is_imported_into_the_script():
    with pytest.raises(OptionError, match="import Net into this script, or define it here"):
        class_named("__main__:Net", Normalizer, "file")


def test_a_class_inside_of_a_function_is_refused_at_once():
    @dataclass(frozen=True)
    class Hidden(Batch):
        pass

    for name in (lambda: lasting_name(Hidden, "save"), lambda: encode(Hidden(), {}, "x")):
        with pytest.raises(OptionError, match=r"save.*Hidden is defined inside of a function"):
            name()
    assert lasting_name(Mine, "save") == name_of(Mine)


def test_what_has_no_form_is_refused():
    with pytest.raises(OptionError, match=r"save: x\.f is a function"):
        encode({"f": lambda: 0}, {}, "x")


def test_arguments_are_read_off_attributes():
    class Keeps:
        def __init__(self, a, *, b=2):
            self.a, self.b = a, b

    class Forgets:
        def __init__(self, a):
            pass

    assert arguments_of(Keeps(1, b=5), "here") == {"a": 1, "b": 5}
    with pytest.raises(OptionError, match="Forgets does not keep its argument 'a'"):
        arguments_of(Forgets(1), "here")


def test_settings_in_words_are_short():
    settings = {
        "std": torch.tensor([0.3, 2.0]),
        "size": 0.1 + 0.2,
        "learned": True,
        "neutral": False,
        "weight": None,
        "many": torch.zeros(5),
        "rows": [1] * 9,
        "name": "a",
        "function": len,
    }
    assert settings_in_words(settings) == (
        "std=[0.3, 2], size=0.3, learned=True, many=tensor of shape (5,), rows=9 values, name='a', "
        "function=len"
    )
