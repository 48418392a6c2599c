"""Results of cells that are written to disk in chunks: the same as in memory."""

import anndata
import numpy as np
import pytest
import scvi
import torch
from scipy import sparse
from small_models import data, each_family, trained

from scqbm.data import CellWriter
from scqbm.model import _to_disk

FORMATS = {".h5ad": anndata.read_h5ad, ".zarr": anndata.read_zarr}
ALL = ("latent", "energy", "expression")
each_format = pytest.mark.parametrize("suffix", FORMATS)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_to_disk, "_CHUNK", 32)


@each_format
@each_family
def test_results_are_those_in_memory(tmp_path, suffix, family):
    model = trained(family)
    path = tmp_path / f"cells{suffix}"
    some = np.r_[3:70, 75]
    torch.manual_seed(0)
    model.write_results(path, indices=some, contents=ALL, silent=True)
    read = FORMATS[suffix](path)
    assert list(read.obs_names) == list(model.adata.obs_names[some])
    assert list(read.var_names) == list(model.adata.var_names)
    assert (read.obs["batch"] == model.adata.obs["batch"].iloc[some]).all()
    assert not [name for name in read.obs if name.startswith("_scvi")]
    codes = model.get_latent_representation(indices=some)
    np.testing.assert_allclose(read.obsm["X_qbmvi"], codes, rtol=1e-5)
    if model.module.prior.expectation_is_exact:
        energies = model.get_prior_energy(indices=some)
        np.testing.assert_allclose(read.obs["prior_energy"], energies, rtol=1e-4)
    expression = model.get_normalized_expression(indices=some, n_samples=50, return_numpy=True)
    found = read.layers["normalized"]
    assert np.corrcoef(found.ravel(), expression.ravel())[0, 1] > 0.8
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_arguments_of_the_expression_reach_it(tmp_path):
    model = trained()
    wanted = {"library_size": 1e4, "gene_list": list(model.adata.var_names[:7]), "n_samples": 3}
    path = tmp_path / "cells.h5ad"
    model.write_results(path, contents=["expression"], expression_kwargs=wanted, silent=True)
    read = anndata.read_h5ad(path)
    assert read.shape == (80, 7) and list(read.var_names) == wanted["gene_list"]
    assert read.layers["normalized"].sum(1).mean() > 100 and not read.obsm


@each_format
def test_from_minibatches_without_an_anndata(tmp_path, suffix):
    model = trained()
    loader = model._make_data_loader(model.adata, batch_size=30)
    path = tmp_path / f"cells{suffix}"
    some = {"gene_list": list(model.adata.var_names[:7])}  # which scvi-tools ignores here
    model.write_results(path, dataloader=loader, contents=ALL, expression_kwargs=some, silent=True)
    read = FORMATS[suffix](path)
    assert list(read.var_names) == list(model.adata.var_names)
    assert list(read.obs_names) == [f"cell_{i}" for i in range(80)]
    np.testing.assert_allclose(read.obsm["X_qbmvi"], model.get_latent_representation(), rtol=1e-5)
    np.testing.assert_allclose(read.obs["prior_energy"], model.get_prior_energy(), rtol=1e-4)
    with pytest.raises(ValueError, match="stands for all cells"):
        model.write_results(tmp_path / "b.zarr", model.adata, dataloader=loader)


@each_format
def test_samples_begin_with_those_in_memory(tmp_path, suffix):
    model = trained()
    path = tmp_path / f"new{suffix}"
    model.write_samples(path, 75, seed=3, batch="batch_1", silent=True)
    read = FORMATS[suffix](path)
    first = model.sample_cells(32, seed=3, batch="batch_1")
    assert read.shape == (75, 30) and sparse.issparse(read.X)
    assert (read.X[:32] != first.X).nnz == 0 and (read.X[32:64] != first.X).nnz > 0
    np.testing.assert_array_equal(read.obsm["code"][:32], first.obsm["code"])
    assert read.uns["sample_cells"] == first.uns["sample_cells"]
    assert list(read.obs_names)[-1] == "drawn_74" and set(read.obs["batch"]) == {"batch_1"}
    assert list(read.var_names) == list(model.adata.var_names)


@each_format
def test_a_file_that_is_there_is_whole(tmp_path, suffix):
    """It is not replaced unasked, and a failed write leaves it."""
    model, path = trained(), tmp_path / f"cells{suffix}"
    model.write_results(path, contents=["energy"], silent=True)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.write_results(path)
    with pytest.raises(RuntimeError, match="broken"):
        model.write_results(path, dataloader=_breaks(model), overwrite=True, silent=True)
    assert len(FORMATS[suffix](path)) == 80
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    model.write_results(path, indices=[0, 1], overwrite=True, silent=True)
    assert len(FORMATS[suffix](path)) == 2


@each_format
def test_what_cannot_be_written_leaves_nothing(tmp_path, suffix):
    with pytest.raises(Exception, match="odd"), CellWriter(tmp_path / f"cells{suffix}") as writer:
        writer.uns = {"odd": object()}
    assert not list(tmp_path.iterdir())


def _breaks(model):
    yield from list(model._make_data_loader(model.adata, batch_size=30))[:2]
    raise RuntimeError("broken")


def test_bad_input_is_named(tmp_path):
    model = trained()
    with pytest.raises(ValueError, match=r"`path` must end in .h5ad or .zarr, not 'cells.csv'"):
        model.write_results("cells.csv")
    with pytest.raises(ValueError, match="`contents` must be one of"):
        model.write_results(tmp_path / "a.zarr", contents=["codes"])
    for wrong in ("latent", []):
        with pytest.raises(ValueError, match="`contents` must be a list of some of"):
            model.write_results(tmp_path / "a.zarr", contents=wrong)
    with pytest.raises(FileNotFoundError, match="folder of `path`"):
        model.write_samples(tmp_path / "no" / "a.zarr", 5)
    with pytest.raises(ValueError, match="`n_samples`"):
        model.write_samples(tmp_path / "a.zarr", 0)


@each_format
def test_no_cells_at_all(tmp_path, suffix):
    with CellWriter(tmp_path / f"none{suffix}"):
        pass
    assert FORMATS[suffix](tmp_path / f"none{suffix}").shape == (0, 0)


def test_there_is_a_progress_bar(tmp_path, capsys):
    scvi.settings.seed = 0
    model = trained(adata=data())
    model.write_results(tmp_path / "a.zarr")
    assert "Writing cells" in capsys.readouterr().err
