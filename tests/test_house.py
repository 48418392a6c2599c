"""The house: which room may import which, what a face shows, and what no file may do twice."""

import ast
import inspect
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import scvi

import scqbm
from scqbm import QBMVI

SOURCE = Path(scqbm.__file__).parent
# From the ground up: a room imports from those before it only.
FLOORS = [
    "_rich",
    "_checks",
    "ising",
    "landscape",
    "data",
    "pl",
    "prior",
    "samplers",
    "likelihood",
    "module",
    "train",
    "model",
]
FLOORS += ["benchmark", "demo"]
FILES = sorted(SOURCE.rglob("*.py"))


def room(file):
    parts = file.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imports(file):
    """Modules of the package that a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name.split(".")[1:] for name in found if name.split(".")[0] == "scqbm"]


def files_of(name):
    """The file behind ``a.b.c``, for the graph of files."""
    path = SOURCE.joinpath(*name)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return files_of(name[:-1]) if name else SOURCE / "__init__.py"


def test_every_room_has_its_floor():
    rooms = {room(file) for file in FILES} - {"__init__"}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_no_arrow_points_up_or_behind_a_face(file):
    here = room(file)
    if here == "__init__":
        return
    for name in imports(file):
        if not name or name[0] in ("QBMVI", "QBMANVI"):  # the package's face, for the demo
            assert here == "demo"
            continue
        there = name[0]
        assert FLOORS.index(there) <= FLOORS.index(here), f"{here} imports {'.'.join(name)}"
        if there != here:
            private = [part for part in name[1:] if part.startswith("_")]
            assert not private, f"{here} imports {'.'.join(name)}, private to {there}"


def test_no_circle():
    graph = {file: {files_of(name) for name in imports(file)} - {file} for file in FILES}
    done, path = set(), []

    def visit(file):
        assert file not in path, [str(f.relative_to(SOURCE)) for f in [*path, file]]
        if file in done:
            return
        path.append(file)
        for other in graph[file]:
            visit(other)
        done.add(path.pop())

    for file in FILES:
        visit(file)


def test_physics_knows_no_scvi():
    for file in FILES:
        if room(file) in ("ising", "samplers", "prior", "pl", "_checks"):
            assert not re.search(r"^\s*(import|from) scvi\b", file.read_text(), re.M), file


def test_long_files_say_why():
    for file in FILES:
        first = file.read_text().partition("\n")[0]
        long = len(file.read_text().splitlines()) > 300
        assert not long or "(long:" in first, file


@pytest.mark.parametrize(
    ("what", "pattern", "home"),
    [
        ("units drawn", r"\.uniform_\(", {"ising/_transverse.py", "samplers/_tempering.py"}),
        ("a limit on enumeration", r"^_?MAX_\w*(UNITS|BITS)\b", {"ising/_exact.py"}),
        ("a table of states", r"bitwise_right_shift", {"ising/_exact.py"}),
        ("torch.compile's wrapper", r"_orig_mod", {"train/_compiled.py"}),
        (
            "a lower bound of an argument",
            r"must be at least \{least\}, not \{_?(value|shown)",
            {"_checks.py"},
        ),
        ("a positive argument", r"must be positive, not", {"_checks.py"}),
    ],
    ids=lambda x: x if isinstance(x, str) and " " in x else "",
)
def test_one_home_each(what, pattern, home):
    found = {
        str(file.relative_to(SOURCE))
        for file in FILES
        if re.search(pattern, file.read_text(), re.M)
    }
    assert found <= home, what


# -- what users see ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("CITATION.cff", r"^version: (.+)$"),
        (".github/ecosystem/meta.yaml", r"^version: (.+)$"),
        ("CHANGELOG.md", r"^## \[(\d.*?)\]"),
    ],
)
def test_one_version(file, pattern):
    path = Path(__file__).parents[1] / file
    if not path.exists():
        pytest.skip(f"{file} is not part of the source distribution")
    assert re.search(pattern, path.read_text(), re.M)[1] == scqbm.__version__


def test_nothing_leaks_into_the_namespace():
    public = {name for name in dir(scqbm) if not name.startswith("_")}
    rooms = {name for name in FLOORS if not name.startswith("_")}
    assert public <= {"QBMANVI", "QBMVI", "match_programs"} | rooms
    faces = {"QBMANVI", "QBMVI", "benchmark", "data", "match_programs", "pl", "samplers"}
    assert set(scqbm.__all__) == faces


@pytest.mark.parametrize(
    "name", ["__init__", "setup_anndata", "train", "get_latent_representation"]
)
def test_signatures_hold_all_that_scvis_have(name):
    ours, theirs = getattr(QBMVI, name), getattr(scvi.model.SCVI, name)
    named = set(inspect.signature(ours).parameters)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    expected = {
        parameter.name
        for parameter in inspect.signature(theirs).parameters.values()
        if parameter.kind not in variable
    }
    assert expected <= named
    described = inspect.getdoc(QBMVI if name == "__init__" else ours)
    for parameter in named - {"self"}:
        assert re.search(rf"^(.*, )?\**{parameter}(,.*)?$", described, re.M), parameter


def tiny(**kwargs):
    adata = scqbm.data.simulate(n_cells=120, n_genes=20, n_types=2, seed=0)
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    return QBMVI(adata, **{"n_latent": 6, "n_hidden": 8, **kwargs})


QUIET = {"accelerator": "cpu", "batch_size": 32, "enable_progress_bar": False}


def test_print_shows_all_that_the_defaults_came_to(capsys):
    model = tiny(n_latent=None)
    print(model)
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "QBMVI model",
        "n_latent: 128",
        "n_prior_hidden: 64",
        "relaxation: reinmax",
        "batch_mixing: 50",
        "input_dropout: 0.3",
        "decoder_dropout: 0.288",
        "entropy_bonus: 0.5",
    ):
        assert part in shown, part


@pytest.mark.parametrize("plan", [{}, {"n_epochs_constant_lr": None}])
def test_a_trained_model_can_be_pickled(plan):
    model = tiny()
    model.train(1, plan_kwargs=dict(plan), **QUIET)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )
    again.train(1, **QUIET)
