from __future__ import annotations

from importlib.metadata import version

import pyronorm
from pyronorm.version import installed_version


def test_the_version_of_what_is_installed_and_of_what_is_not():
    assert pyronorm.__version__ == installed_version("pyronorm")
    assert installed_version("torch") == version("torch")
    assert installed_version("a-folder-on-the-path") == "0+unknown"
