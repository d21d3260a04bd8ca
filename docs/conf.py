"""The documentation site: `pip install -e '.[docs]' && sphinx-build -W docs build/docs`."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "brevitas_axe"
author = "brevitas_axe contributors"
version = release = installed_version("brevitas_axe")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"brevitas_axe {release}"

# Headings are linked to from other pages, as on GitHub.
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False
