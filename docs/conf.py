"""Sphinx configuration; `make docs` builds with warnings as errors, and needs no network."""

from importlib.metadata import version as installed_version

project = "scqbm"
author = "scqbm authors"
copyright = "2026, scqbm authors"
release = version = installed_version("scqbm")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["results_*.md", "_build", "**/.ipynb_checkpoints"]

# Notebooks are shown as they were saved: run them by hand, where there is time for it.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 2

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature says it; the text says what it means
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"scqbm {release}"
html_static_path = ["_static"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
