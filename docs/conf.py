"""Sphinx configuration. Build with ``make docs`` (warnings are errors)."""

from importlib.metadata import version as installed_version

project = "pyronorm"
author = "The pyronorm developers"
release = version = installed_version("pyronorm")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "pyronorm"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the signature of the source; shapes in the docstring
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source", "Departs from the paper", "Sites", ("Shape", "params_style")]

# Every reference to a name of this project has to be found.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!pyronorm\b).*"),
    ("py:.*", r"pyronorm\.(.*\.)?_.*"),
]
