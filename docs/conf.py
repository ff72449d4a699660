"""Sphinx configuration of the documentation site."""

import openruntime_jupyter

project = "OpenRuntime for Jupyter"
project_copyright = "OpenRuntime contributors"
version = release = openruntime_jupyter.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

# The notebooks are shown as they were saved; the tests run them.
nb_execution_mode = "off"
suppress_warnings = [
    "toc.not_included",  # the README, to which pages link
    "mystnb.unknown_mime_type",  # widgets, which have a text form beside them
    "docutils",  # Markdown in saved answers of models
    "misc.highlighting_failure",  # shortened ids in examples
]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = False

html_theme = "pydata_sphinx_theme"
html_title = project
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "navbar_align": "left", "secondary_sidebar_items": ["page-toc"]}
