"""Sphinx settings."""

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
