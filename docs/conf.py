"""Configuration of Sphinx. Build the pages with `sphinx-build -W --keep-going docs docs/_build`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# The root of the repository: autodoc imports the package from there, and Django imports the settings of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

import reliable_cable  # noqa: E402 - imports Django's models, so settings come first

project = "reliable_cable"
author = "the authors of reliable_cable"
release = version = reliable_cable.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
# Headings can be linked as on GitHub: `[History](protocol.md#history)`.
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"reliable_cable {release}"

# Docstrings mark code with single backticks. The name of a documented object becomes a link; other code does not.
default_role = "py:obj"
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True


def keep_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading the part before a colon as a type, in the comment of an attribute or a constant."""
    if what in ("attribute", "data") and lines:
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    """Connect `keep_colons`, so that Sphinx calls it before the handler of napoleon."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
