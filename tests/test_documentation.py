"""What the pages and docstrings tell a user to type works, and what they quote is there."""

import doctest
import importlib
import inspect
import re
from importlib.metadata import metadata
from pathlib import Path

import anndata
import matplotlib
import numpy as np
import pytest
import scanpy as sc
import scvi

import scqbm
from scqbm import QBMANVI, QBMVI
from scqbm.samplers import ExactSampler

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
PAGES = ["README.md"] + [
    f"docs/{page}.md"
    for page in ("index", "quickstart", "from_scvi", "model", "landscape", "labels", "samplers")
]
# needs hardware, or takes minutes and is called so in another test
ELSEWHERE = ("from_cloud", "KaiwuSampler", "n_latent=2000")
ELSEWHERE += ("benchmark.integration", "benchmark.trajectory")
FACES = ("", ".samplers", ".pl", ".data", ".benchmark", ".prior", ".module", ".train", ".model")
needs_repository = pytest.mark.skipif(
    not (ROOT / "notebooks").exists(), reason="not all files are in the source distribution"
)


def elsewhere(code):
    """Whether this test cannot run the code."""
    return any(word in code for word in ELSEWHERE)


def documented():
    """Docstrings of ours with an example, by name."""
    found = {}
    for face in FACES:
        module = importlib.import_module(f"scqbm{face}")
        for name in module.__all__:
            what = getattr(module, name)
            members = {name: what}
            if inspect.isclass(what):
                members |= {f"{name}.{k}": getattr(what, k) for k in dir(what) if k[0] != "_"}
            for where, member in members.items():
                text = inspect.getdoc(member) if callable(member) else None
                home = getattr(member, "__module__", None) or ""
                if text and ">>>" in text and home.startswith("scqbm") and not elsewhere(text):
                    found.setdefault(f"{member.__qualname__}", (where, text))
    return {where: text for where, text in found.values()}


DOCSTRINGS = documented()


@pytest.fixture(scope="module")
def trained():
    """Names that examples use, of cells that have what they ask for."""
    scvi.settings.seed = 0
    adata = scqbm.data.simulate(400, 60, n_types=4, n_batches=2, seed=0)
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories(["donor_1", "donor_2"])
    types = ["B", "CD14 Mono", "CD4 T", "NK"]
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(types)
    adata.obs["day"] = np.arange(400.0) % 7
    adata.obs["lineage"] = adata.obs["cell_type"]
    for name in ("umap_qbmvi", "umap_scvi", "X_umap"):
        adata.obsm[name] = np.random.default_rng(0).normal(size=(400, 2))
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=16)
    model.train(2, enable_progress_bar=False)
    for_scvi = adata.copy()
    scvi.model.SCVI.setup_anndata(for_scvi, batch_key="batch")
    other = scvi.model.SCVI(for_scvi)
    other.train(1, enable_progress_bar=False)
    adata.obsm["X_scVI"] = other.get_latent_representation()
    adata.obsm["X_qbmvi"] = model.get_latent_representation()
    some = adata.copy()
    some.obs["label"] = some.obs["cell_type"].cat.add_categories("Unknown")
    some.obs.loc[some.obs_names[::2], "label"] = "Unknown"
    landscape = model.get_landscape(labels_key="cell_type", silent=True)
    return {"adata": adata, "model": model, "other": other, "some": some, "landscape": landscape}


@pytest.fixture
def names(trained, tmp_path, monkeypatch):
    """Those names; short trainings, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for module in ("_qbmvi", "_qbmanvi"):
        home = importlib.import_module(f"scqbm.model.{module}")
        monkeypatch.setattr(home, "default_epochs", lambda n_cells: 1)
    adata, model = trained["adata"], trained["model"]
    plain(adata).write_h5ad("cells.h5ad")

    return {
        "adata": adata, "model": model, "other": trained["other"],
        "sampler": ExactSampler(), "rbm": model.module.prior.rbm(),
        "scqbm": scqbm, "scvi": scvi, "sc": sc, "anndata": anndata, "np": np,
        "QBMVI": QBMVI, "QBMANVI": QBMANVI, "landscape": trained["landscape"],
    }  # fmt: skip


def plain(adata):
    """A copy that scvi-tools does not take for the same cells."""
    copy = adata.copy()
    copy.uns.clear()
    return copy


def small(code):
    """The same code with fewer cells and bits."""
    for more, less in {
        " QBMVI(adata)": " QBMVI(adata, n_latent=16)",
        "QBMANVI(adata)": "QBMANVI(adata, n_latent=16)",
        "n_cells=2000": "n_cells=400",
        "1_000_000": "50",
    }.items():
        code = code.replace(more, less)
    return code


def of_labels(names, trained):
    """The same names where the example is one of QBMANVI."""
    some = plain(trained["some"])
    some.obs["cell_type"] = some.obs["label"]
    return names | {"adata": some, "model": names["model"]}


@pytest.mark.parametrize("where", DOCSTRINGS)
def test_examples_of_docstrings_run(where, names, trained):
    code = "".join(e.source for e in doctest.DocTestParser().get_examples(DOCSTRINGS[where]))
    if where.startswith("QBMANVI") and where.split(".")[-1] not in dir(QBMVI):
        names = of_labels(names, trained)
        if where in ("QBMANVI.predict", "QBMANVI.get_label_energies"):
            QBMANVI.setup_anndata(names["adata"], "cell_type", "Unknown", batch_key="batch")
            names["model"] = QBMANVI(names["adata"], n_latent=16)
            names["model"].train(1, enable_progress_bar=False)
    exec(compile(small(code), where, "exec"), names)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_pages_runs(page, names, trained):
    if page == "docs/from_scvi.md":  # it removes the counts
        adata, query = plain(names["adata"]), plain(names["adata"])
        QBMVI.setup_anndata(adata, batch_key="batch")
        model = QBMVI(adata, n_latent=16)
        model.train(1, enable_progress_bar=False)
        names = names | {"adata": adata, "query": query, "model": model}
    if page == "docs/labels.md":
        names = of_labels(names, trained)
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        if not elsewhere(block):
            exec(compile(small(block), page, "exec"), names)
    matplotlib.pyplot.close("all")


@needs_repository
@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SUPPORT.md"])
def test_files_that_a_page_links_to_are_there(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / target).exists(), target


def test_figures_of_the_readme_are_those_of_the_benchmark():
    rows = [x for x in (ROOT / "README.md").read_text().splitlines() if x.startswith("| ")][1:]
    page = (ROOT / "docs/benchmark.md").read_text()
    assert len(rows) == 5
    assert all(row in page for row in rows)


def test_the_readme_of_a_package_index_has_no_relative_links():
    text = metadata("scqbm")["Description"] or metadata("scqbm").get_payload()
    assert "](https://" in text
    assert not re.findall(r"\]\((?!https?:|#)", text)


def test_messages_of_the_faq_are_in_the_code():
    page = (ROOT / "docs/faq.md").read_text()
    section = page[page.index("## By message") : page.index("## Anything else")]
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    for message in (
        "The prior has separated modes that its sampler cannot cross",
        "The prior's chains have stopped mixing",
        "The fields miss the mean of a unit",
        "SCANVI.from_scvi_model cannot start from QBMVI",
        "is an argument of the training plan",
        "holds {what} counts in X",
    ):
        assert message in source, message
        assert message.replace("{what}", "negative") in section, message
