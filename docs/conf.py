"""Sphinx settings."""

import re

import sparsejax

project = "sparsejax"
author = "The sparsejax authors"
copyright = "2026, The sparsejax authors"
version = release = sparsejax.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
html_theme = "furo"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
myst_enable_extensions = ["dollarmath"]


def escape_bars(app, what, name, obj, options, lines):
    """Keeps |w| from being taken for a substitution, outside of examples."""
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[index] = re.sub(r"\|(?=\S)([^|]*[^|\s])\|", r"\|\1\|", line)


def setup(app):
    """Connects what is above to Sphinx."""
    app.connect("autodoc-process-docstring", escape_bars)
