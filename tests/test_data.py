"""Dataset files, and the choice of their genes."""

import ast
import os
import re
from pathlib import Path

import anndata
import numpy as np
import pytest
from helpers import assert_same_cells
from scipy import sparse

from scqbm.data import _files, available, load, log_normalised, prepare, simulate

# files


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SCQBM_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("value", [None, "", "no/such/folder"])
def test_without_a_folder(monkeypatch, tmp_path, value):
    simulate(20, 5).write_h5ad(tmp_path / "pbmc.h5ad")
    monkeypatch.chdir(tmp_path)  # which must not count as the data folder
    monkeypatch.delenv("SCQBM_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("SCQBM_DATA", value)
    assert available() == []
    with pytest.raises(FileNotFoundError, match="'pbmc'.*set .*SCQBM_DATA.*pbmc.h5ad"):
        load("pbmc")


def test_load_reads_what_is_available(folder):
    first, second = simulate(30, 10, seed=1), simulate(30, 10, seed=2)
    second.write_h5ad(folder / "b.v2.h5ad")
    first.write_h5ad(folder / "a.h5ad")
    (folder / "notes.txt").write_text("not a dataset")
    assert available() == ["a", "b.v2"]
    assert_same_cells(load("a"), first)
    assert_same_cells(load("b.v2"), second)
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder))):
        load("notes")


@pytest.mark.parametrize(
    "file", sorted(Path(_files.__file__).parent.glob("*.py")), ids=lambda f: f.name
)
def test_scanpy_is_not_imported_with_the_file(file):
    # at the top level: scvi-tools 1.5 imports it by itself, so that sys.modules cannot tell
    for node in ast.parse(file.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert "scanpy" not in {name.split(".")[0] for name in names}


# prepare


def test_log_normalisation_leaves_the_counts_and_other_values_alone():
    counts = sparse.csr_matrix(np.array([[1.0, 3.0], [0.0, 2.0]], np.float32))
    logged = log_normalised(counts)
    assert np.allclose(np.expm1(logged.toarray()).sum(1), 1e4, rtol=1e-5)
    assert counts.toarray().sum() == 6
    assert log_normalised(logged) is logged


@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize("dense", [False, True])
def test_prepare_keeps_raw_counts_of_the_genes_that_vary(batch_key, dense):
    adata = simulate(2000, 400, type_strength=2.0, type_genes=0.03, library_size=5000.0)
    if dense:
        adata.X = adata.X.toarray()
    before = adata.copy()
    kept = prepare(adata, batch_key, n_top_genes=60)
    assert kept.shape == (2000, 60) and not kept.is_view
    assert (before.X != adata.X).sum() == 0 and before.var.equals(adata.var)
    assert (kept.X != adata[:, kept.var_names].X).sum() == 0
    assert list(kept.var_names) == [n for n in adata.var_names if n in set(kept.var_names)]

    changes = np.any(adata.varm["programs"] != 0, axis=1)
    assert np.any(kept.varm["programs"] != 0, axis=1).mean() > changes.mean() + 0.3


def test_prepare_ranks_within_batches():
    # With a huge batch effect, ranking over all cells picks batch genes; within batches, types.
    adata = simulate(2000, 400, 4, type_strength=2.0, type_genes=0.05, batch_strength=1.5)
    share = {
        key: np.any(prepare(adata, key, 50).varm["programs"] != 0, axis=1).mean()
        for key in (None, "batch")
    }
    assert share["batch"] > share[None]


def test_prepare_with_few_genes_keeps_all():
    adata = simulate(100, 20)
    for n_top_genes in (20, 2000):
        kept = prepare(adata, "batch", n_top_genes)
        assert_same_cells(kept, adata)
        assert kept is not adata


@pytest.mark.parametrize("dense", [False, True])
def test_prepare_takes_a_view(dense):
    adata = simulate(100, 40)
    if dense:
        adata.X = adata.X.toarray()
    part = adata[10:90]
    kept = prepare(part, "batch", 20)
    assert part.is_view and not kept.is_view and kept.n_obs == 80
    assert list(kept.var_names) == list(prepare(part.copy(), "batch", 20).var_names)


def test_prepare_leaves_out_empty_cells():
    adata = simulate(100, 20)
    adata.X[3] = 0
    kept = prepare(adata)
    assert "cell_3" not in kept.obs_names and kept.n_obs == 99


def test_prepare_bad_arguments():
    adata = simulate(50, 20)
    with pytest.raises(ValueError, match="`batch_key`.*'donor'"):
        prepare(adata, "donor")
    for n_top_genes in (0, 1.5):
        with pytest.raises(ValueError, match="`n_top_genes`"):
            prepare(adata, n_top_genes=n_top_genes)
    for bad in (0.5, -1.0, np.nan):
        adata.X.data[0] = bad
        with pytest.raises(ValueError, match="raw counts"):
            prepare(adata)


def real(name):
    if name not in available():
        pytest.skip(f"SCQBM_DATA has no {name}")
    return load(name)


needs_data = pytest.mark.skipif(
    not os.environ.get("SCQBM_DATA"), reason="SCQBM_DATA names no data folder"
)


@needs_data
@pytest.mark.parametrize(("name", "batch_key"), [("paul15", None), ("pancreas_4studies", "batch")])
def test_prepare_real_data(name, batch_key):
    adata = real(name)
    kept = prepare(adata, batch_key, n_top_genes=1000)
    assert kept.shape == (adata.n_obs, 1000)
    assert (kept.X != adata[:, kept.var_names].X).nnz == 0
    assert kept.obs.equals(adata.obs)


@needs_data
def test_chosen_genes_tell_published_types_apart():
    # Not on paul15: its genes were selected before publication, so the rest tell types as well.
    adata = real("pancreas_4studies")
    chosen = adata.var_names.isin(prepare(adata, "batch", n_top_genes=1000).var_names)
    total = np.asarray(adata.X.sum(axis=1))
    logged = np.log1p(1e4 * adata.X.toarray() / total)
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    between = np.zeros(adata.n_vars)
    for code in np.unique(codes):
        shift = logged[codes == code].mean(0) - logged.mean(0)
        between += (codes == code).mean() * shift**2
    share = between / logged.var(0).clip(1e-9)
    assert np.median(share[chosen]) > 2 * np.median(share[~chosen])


@pytest.mark.parametrize("kind", [int, bool, str])
def test_prepare_takes_batches_of_any_kind(kind):
    adata = simulate(200, 60, n_types=2, n_batches=2, seed=0)
    numbers = adata.obs["batch"].cat.codes.to_numpy()
    expected = prepare(adata, "batch", 20).var_names
    adata.obs["batch"] = numbers.astype(kind)
    found = prepare(adata, "batch", 20)
    assert list(found.var_names) == list(expected)
    assert (found.obs["batch"].to_numpy() == numbers.astype(kind)).all()  # as it was


def test_prepare_takes_a_file(tmp_path):
    adata = simulate(200, 60, n_types=2, n_batches=2, seed=0)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert_same_cells(prepare(backed, "batch", 20), prepare(adata, "batch", 20))
