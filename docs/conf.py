"""Sphinx configuration. Build with ``make docs`` (warnings are errors)."""

import os
from importlib.metadata import version as installed_version

project = "pyronorm"
author = "The pyronorm developers"
release = version = installed_version("pyronorm")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without a network
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

# The notebooks run when the pages are built, anew only if their code has changed.
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # whatever it is outside
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

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
