"""Sphinx configuration of the documentation: `make docs` builds it, warnings are errors."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
# libraries' advice to programmers at import is not ours to print
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

from docstrings import hide_fields, to_dashes, to_rst  # noqa: E402
from generated import insert_generated  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "segtune"
author = "segtune contributors"
copyright = "segtune contributors, Apache License 2.0"  # noqa: A001

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_static"]
nitpicky = False
default_role = "code"
smartquotes = False

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "segtune"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "default"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """Connect what is generated from the source."""
    app.connect("source-read", insert_generated)
    # before napoleon, which reads the sections of the docstring
    app.connect("autodoc-process-docstring", to_rst, priority=100)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("doctree-read", to_dashes)
