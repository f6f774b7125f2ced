from __future__ import annotations

import pytest

from pyronorm.normalizers.words import plain_name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("", ""),
        ("_orig_mod", ""),
        ("_orig_mod.layer1.0.bn", "layer1.0.bn"),
        ("layer1._orig_mod.0._checkpoint_wrapped_module.bn", "layer1.0.bn"),
        ("_fsdp_wrapped_module.bn", "bn"),
        ("my_orig_mod.module.bn", "my_orig_mod.module.bn"),
    ],
)
def test_names_without_wrappers(name, plain):
    assert plain_name(name) == plain
