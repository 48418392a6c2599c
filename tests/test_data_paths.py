"""The same cells from memory, from files and from collections: the same training."""

import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import scvi
import torch
import zarr
from scipy.sparse import csr_matrix
from scvi.data import synthetic_iid
from small_models import QUIET

from scqbm import QBMVI

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import scale


def cells():
    scvi.settings.seed = 0
    adata = synthetic_iid(batch_size=60, n_genes=30)
    adata.X = csr_matrix(adata.X.astype(np.float32))
    return adata


def as_dense(folder):
    adata = cells()
    adata.X = adata.X.toarray()
    return adata


def in_memory(folder):
    return cells()


def backed(folder):
    cells().write_h5ad(folder / "cells.h5ad")
    return anndata.read_h5ad(folder / "cells.h5ad", backed="r")


def backed_dense(folder):
    as_dense(folder).write_h5ad(folder / "cells.h5ad")
    return anndata.read_h5ad(folder / "cells.h5ad", backed="r")


def from_zarr(folder):
    cells().write_zarr(folder / "cells.zarr")
    group = zarr.open(folder / "cells.zarr", mode="r")
    adata = cells()
    return anndata.AnnData(anndata.io.sparse_dataset(group["X"]), obs=adata.obs, var=adata.var)


def mapped(folder):
    """A CSR matrix whose values stay on disk."""
    adata = cells()
    for name in ("data", "indices"):
        np.save(folder / f"{name}.npy", getattr(adata.X, name))
        setattr(adata.X, name, np.load(folder / f"{name}.npy", mmap_mode="r"))
    return adata


def trained(adata, layer=None, **kwargs):
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, layer=layer, batch_key="batch")
    model = QBMVI(adata, n_latent=6, n_hidden=16)
    model.train(2, **kwargs, **QUIET)
    return model


@pytest.fixture(scope="module")
def reference():
    model = trained(cells())
    return model.module.state_dict(), model.get_latent_representation(), float(model.get_elbo())


SPARSE, DENSE = (in_memory, backed, from_zarr, mapped), (as_dense, backed_dense)


@pytest.mark.parametrize(
    ("form", "load_sparse_tensor"),
    [(form, False) for form in (*SPARSE, *DENSE)] + [(form, True) for form in SPARSE],
)
def test_the_form_of_the_counts_does_not_matter(tmp_path, reference, form, load_sparse_tensor):
    model = trained(form(tmp_path), load_sparse_tensor=load_sparse_tensor)
    state, codes, elbo = reference
    assert float(model.get_elbo()) == pytest.approx(elbo, abs=0.5)
    if form not in (backed, backed_dense):  # scvi-tools sorts the cells of their minibatches
        for name, value in model.module.state_dict().items():
            torch.testing.assert_close(value, state[name], msg=name)
        np.testing.assert_allclose(model.get_latent_representation(), codes, atol=1e-5)
    assert np.isfinite(model.get_prior_energy()).all()


def test_a_collection_of_files(tmp_path):
    from anndata.experimental import AnnCollection
    from scvi.dataloaders import CollectionAdapter

    adata = cells()
    adata.layers["counts"] = adata.X
    parts = [adata[:60].copy(), adata[60:].copy()]
    collection = CollectionAdapter(AnnCollection(parts, join_vars="inner", join_obs="inner"))
    model = trained(collection, layer="counts")
    assert model.get_latent_representation().shape == (120, 6)
    assert np.isfinite(model.get_prior_energy()).all()


def test_cells_of_the_scale_benchmark(tmp_path, monkeypatch):
    """What is mapped is what anndata reads, and no cell is empty."""
    monkeypatch.delenv("SCQBM_DATA", raising=False)
    monkeypatch.setattr(scale, "CHUNK", 100)
    monkeypatch.setattr(scale, "templates", lambda: (cells().X, "synthetic"))
    scale.write(tmp_path / "cells.h5ad", 250)
    mapped, read = (
        scale.mapped(tmp_path / "cells.h5ad"),
        anndata.read_h5ad(tmp_path / "cells.h5ad"),
    )
    assert mapped.shape == (250, 30) and isinstance(mapped.X.data, np.memmap)
    np.testing.assert_array_equal(mapped.X.toarray(), read.X.toarray())
    assert (read.X.sum(1) > 0).all() and (mapped.obs["batch"] == read.obs["batch"]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


@pytest.mark.filterwarnings("ignore:Model was initialized without")
def test_annbatch_of_scvi_tools(tmp_path):
    """Cells that are streamed from disk, with scvi-tools 1.5 and later (Python 3.12)."""
    pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    if not hasattr(QBMVI, "setup_annbatch"):
        pytest.skip("this scvi-tools has no setup_annbatch")
    adata, parts = cells(), []
    for name in ("batch_0", "batch_1"):
        parts.append(str(tmp_path / f"{name}.h5ad"))
        adata[adata.obs["batch"] == name].copy().write_h5ad(parts[-1])
    datamodule = QBMVI.setup_annbatch(
        str(tmp_path / "cells.zarr"),
        parts,
        batch_key="batch",
        batch_size=32,
        chunk_size=16,
        preload_nchunks=2,
        preload_to_gpu=False,
    )
    scvi.settings.seed = 0
    model = QBMVI(registry=datamodule.registry, n_latent=6, n_hidden=16)
    model.train(2, datamodule=datamodule, **QUIET)
    assert model.module.chosen == trained(adata).module.chosen
    assert model.get_latent_representation(dataloader=datamodule).shape == (120, 6)
    assert np.isfinite(model.get_prior_energy(dataloader=datamodule)).all()
    model.write_results(tmp_path / "codes.zarr", dataloader=datamodule, silent=True)
    assert anndata.read_zarr(tmp_path / "codes.zarr").obsm["X_qbmvi"].shape == (120, 6)


def test_the_prior_tells_the_same_of_cells_in_a_file(tmp_path):
    """Energies, basins, programs and new cells of one model, with counts in memory and on disk."""
    adata = in_memory(tmp_path)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, n_latent=12, n_prior_hidden=6)
    model.train(2, **QUIET)
    model.save(tmp_path / "model")
    model, other = (
        QBMVI.load(tmp_path / "model", adata=cells) for cells in (adata, backed(tmp_path))
    )
    np.testing.assert_allclose(other.get_prior_energy(), model.get_prior_energy(), rtol=1e-5)
    basins, its = (
        m.get_landscape(labels_key="labels", resolution=0.0, silent=True) for m in (model, other)
    )
    np.testing.assert_allclose(its.obs["energy"], basins.obs["energy"], rtol=1e-5)
    assert its.obs["n_cells"].tolist() == basins.obs["n_cells"].tolist()
    programs, its = (
        m.get_programs(n_programs=3, labels_key="labels", silent=True) for m in (model, other)
    )
    np.testing.assert_allclose(its["weight"], programs["weight"], rtol=1e-3, atol=1e-5)
    of_a_type, its = (
        m.sample_cells(20, like={"labels": "label_0"}, batch="batch_0", seed=0)
        for m in (model, other)
    )
    np.testing.assert_array_equal(its.obsm["code"], of_a_type.obsm["code"])
    # scvi-tools sorts the cells whose depths are read from a file, so the counts are other draws
    depths = [cells.X.sum() for cells in (its, of_a_type)]
    assert depths[0] == pytest.approx(depths[1], rel=0.2)


@pytest.mark.parametrize("form", [backed, backed_dense])
def test_cells_in_a_file_keep_the_order_that_was_asked_for(tmp_path, form):
    """scvi-tools sorts the cells of a minibatch if they are on disk."""
    model = trained(cells())
    model.save(tmp_path / "model")
    on_disk = QBMVI.load(tmp_path / "model", adata=form(tmp_path))
    asked = np.random.default_rng(0).permutation(on_disk.adata.n_obs)[:150]
    asked = np.append(asked, asked[:5])  # also twice
    asks = {"get_latent_representation": {}, "get_prior_energy": {"kind": "csp"}}
    for method, kwargs in asks.items():
        expected, found = (
            getattr(one, method)(indices=asked, batch_size=32, **kwargs)
            for one in (model, on_disk)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=method)
    drawn, same = (one.sample_cells(400, seed=1) for one in (model, on_disk))
    assert (drawn.obs["batch"].to_numpy() == same.obs["batch"].to_numpy()).all()
    # the decoder, too, was told of these batches and depths
    depth = (np.asarray(each.X.sum(1)).ravel() for each in (drawn, same))
    assert np.corrcoef(*depth)[0, 1] > 0.5
    on_disk.write_results(tmp_path / "results.h5ad", indices=asked[:150], silent=True)
    written = anndata.read_h5ad(tmp_path / "results.h5ad")
    expected = model.get_latent_representation(indices=asked[:150])
    np.testing.assert_allclose(written.obsm["X_qbmvi"], expected, rtol=1e-4, atol=1e-5)
