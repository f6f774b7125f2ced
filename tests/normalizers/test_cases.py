"""The table that grids of tests are made of has every kind."""

from __future__ import annotations

from inspect import isabstract

from pyronorm import normalizers
from tests.normalizers.cases import NORMALIZERS


def test_every_normalizer_is_in_the_table():
    kinds = (vars(normalizers)[name] for name in normalizers.__all__)
    concrete = {
        kind.__name__
        for kind in kinds
        if isinstance(kind, type)
        and issubclass(kind, normalizers.Normalizer)
        and not isabstract(kind)
    }
    assert concrete - {"Original"} == set(NORMALIZERS)  # that one is made around a foreign layer
    for name, normalizer in NORMALIZERS.items():
        assert normalizer is None or type(normalizer).__name__ == name
