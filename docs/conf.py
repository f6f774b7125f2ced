"""Sphinx configuration. Build with ``make docs`` (warnings are errors)."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pyronorm"
author = "The pyronorm developers"
project_copyright = "the pyronorm developers"
release = version = installed_version("pyronorm")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx.ext.intersphinx",
    "api_pages",  # one for each public object
    "inventories",  # names of other projects, without a network
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
nb_output_stderr = "remove"  # what libraries say of the machine
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "pyronorm"
html_static_path = ["_static"]
html_css_files = ["pyronorm.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # methods that say nothing of their own stand in the base class
maximum_signature_line_length = 72  # of longer ones each argument has its line
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what comes back is described, its type stands in the signature
napoleon_custom_sections = ["Source", "Departs from the paper", "Sites", ("Shape", "params_style")]

# Every reference to a name of this project has to be found.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!pyronorm\b).*"),
    ("py:.*", r"pyronorm\.(.*\.)?_.*"),
    # types of signatures that no room exports, and tables of names, which have no page
    ("py:class", r"pyronorm\.(\w+\.)+(Choose|Origin|Subject|UncertaintyUciSettings)"),
    ("py:data", r"pyronorm\.study\..*"),
]
