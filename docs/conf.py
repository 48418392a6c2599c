"""Sphinx configuration; `make docs` builds with warnings as errors, and needs no network."""

import inspect
import re
import sys
from importlib.metadata import metadata
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import scqbm

info = metadata("scqbm")
links = dict(line.split(", ", 1) for line in info.get_all("Project-URL"))

project = "scqbm"
author = "scqbm authors"
copyright = "2026, scqbm authors"
release = version = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["results_*.md", "_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]

# Notebooks are shown as they were saved: `make notebooks` runs them.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = [
    "amsmath",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "substitution",
]
myst_heading_anchors = 3


def members_of(model):
    """Public members of a model, for its page: those of scqbm, then those of scvi-tools."""
    cls = getattr(scqbm, model)
    where = {}  # the class that defines each member
    for base in reversed(cls.__mro__):
        where |= {name: base for name in vars(base) if not name.startswith("_")}
    ours, theirs = [], []
    for name, base in sorted(where.items()):
        what = inspect.getattr_static(cls, name)
        kind = "property" if isinstance(what, property) else "method"
        if kind == "method" and not callable(getattr(cls, name)):
            continue
        mine = base.__module__.startswith("scqbm")
        (ours if mine else theirs).append((name, kind))
    return ("Methods of scqbm", ours), ("Methods of scvi-tools", theirs)


autosummary_generate = True
autosummary_context = {"of_models": {name: members_of(name) for name in ("QBMVI", "QBMANVI")}}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_rtype = False

# Where other projects' pages can be reached, their names become links.
OTHERS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scvi-tools": "https://docs.scvi-tools.org/en/stable/",
    "dwave": "https://docs.dwavequantum.com/en/latest/",
}


def _is_reachable(url):
    try:
        with urlopen(f"{url}objects.inv", timeout=5):
            return True
    except (URLError, OSError):
        return False


intersphinx_mapping = {name: (url, None) for name, url in OTHERS.items() if _is_reachable(url)}
intersphinx_timeout = 10


def linkcode_resolve(domain, info):
    """The lines of a Python object in the repository."""
    if domain != "py" or not info["module"].startswith("scqbm"):
        return None
    what = sys.modules.get(info["module"])
    try:
        for name in info["fullname"].split("."):
            what = getattr(what, name)
        what = inspect.unwrap(what.fget if isinstance(what, property) else what)
        file = Path(inspect.getsourcefile(what)).relative_to(Path(scqbm.__file__).parent)
        lines, first = inspect.getsourcelines(what)
    except (AttributeError, TypeError, OSError, ValueError):  # not ours, or not code
        return None
    where = f"{links['Source']}/blob/v{release}/src/scqbm/{file.as_posix()}"
    return f"{where}#L{first}-L{first + len(lines) - 1}"


html_theme = "sphinx_book_theme"
html_title = "scqbm"
html_static_path = ["_static"]
html_css_files = ["scqbm.css"]
html_theme_options = {
    "repository_url": links["Source"],
    "use_repository_button": True,
    "use_issues_button": True,
    "show_navbar_depth": 1,
    "path_to_docs": "docs",
    "navbar_start": [],  # all of it is in the column on the left
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def plain_citations(app, what, name, obj, options, lines):
    """scvi-tools cites with a role of an extension that only its own pages need."""
    lines[:] = [re.sub(r":cite:p:`~?(\w+)`", r"[\1]", line) for line in lines]


def setup(app):
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", plain_citations)
