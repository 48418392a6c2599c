"""Synthetic cells: codes from the prior, counts from the decoder."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import two_models

from scqbm import QBMVI
from scqbm.data import simulate
from scqbm.model import decode, random_cells
from scqbm.samplers import ExactSampler


@pytest.fixture(scope="module")
def models():
    return two_models()


def test_sample_cells_codes_follow_the_prior(models):
    """Against enumeration of a prior with strong couplings."""
    adata, trained = models
    model = trained["QBMVI"]
    prior = model.module.prior
    kept = {name: p.detach().clone() for name, p in prior.named_parameters()}
    with torch.no_grad():
        prior.coupling.copy_(torch.tensor([[3.0, -2, 0], [0, 1, 2], [-3, 0, 1]]))
        prior.visible_bias.copy_(torch.tensor([0.5, -1.0, 0.0]))
    n = 4000
    drawn = model.sample_cells(n, seed=1)
    codes = drawn.obsm["code"]
    states = np.array(np.meshgrid(*[[0, 1]] * 6, indexing="ij")).reshape(6, -1).T
    energy = prior.energy(torch.tensor(states, dtype=torch.float32)).detach().numpy()
    expected = np.exp(-energy) / np.exp(-energy).sum()
    which = (codes @ 2 ** np.arange(5, -1, -1)).astype(int)
    found = np.bincount(which, minlength=64) / n
    assert np.abs(found - expected).max() < 5 * np.sqrt(expected.max() / n)
    with torch.no_grad():
        for name, p in prior.named_parameters():
            p.copy_(kept[name])
    values = drawn.X.toarray()
    assert (values >= 0).all() and (values == np.rint(values)).all()
    assert drawn.n_vars == adata.n_vars and set(drawn.obs["batch"]) == set(adata.obs["batch"])


def test_sample_cells_of_a_batch_and_depth(models):
    _, trained = models
    model = trained["QBMVI"]
    drawn = model.sample_cells(300, batch="batch_1", library_size=500.0)
    assert set(drawn.obs["batch"]) == {"batch_1"}
    total = np.asarray(drawn.X.sum(1)).ravel()
    assert total.mean() == pytest.approx(500, rel=0.1)
    assert (model.sample_cells(20, seed=3).X != model.sample_cells(20, seed=3).X).nnz == 0
    with pytest.raises(ValueError, match="`batch` must be one of"):
        model.sample_cells(5, batch="nowhere")
    with pytest.raises(ValueError, match="`library_size` must be positive"):
        model.sample_cells(5, library_size=0)


def test_drawn_cells_take_depth_and_batch_from_the_same_real_cell(models):
    """Codes aside, cell i is like real cell i: its depth follows."""
    adata, trained = models
    like = np.random.default_rng(0).integers(0, adata.n_obs, 150)  # unsorted, repeated
    drawn = decode(trained["SCVI"], np.zeros((150, 3)), like)
    depth = np.asarray(adata.X.sum(1)).ravel()[like]
    assert np.corrcoef(np.asarray(drawn.X.sum(1)).ravel(), depth)[0, 1] > 0.8
    assert (drawn.obs["batch"].to_numpy() == adata.obs["batch"].iloc[like].to_numpy()).all()


# -- what comes along ----------------------------------------------------------------------------


def test_only_what_the_decoder_was_given_and_the_energy_is_in_obs(models):
    adata, trained = models
    drawn = trained["QBMVI"].sample_cells(50)
    assert {"cell_type", "library_size"} < set(adata.obs)  # not registered: of other cells
    assert list(drawn.obs) == ["batch", "prior_energy"]
    assert list(drawn.var_names) == list(adata.var_names) and not len(drawn.var.columns)
    assert drawn.obs_names.is_unique and not set(drawn.obs_names) & set(adata.obs_names)


def test_the_energy_is_that_of_the_drawn_code(models):
    model = models[1]["QBMVI"]
    drawn = model.sample_cells(50, seed=2)
    code = torch.as_tensor(drawn.obsm["code"])
    with torch.no_grad():
        energy = model.module.prior.energy(code).numpy()
    np.testing.assert_allclose(drawn.obs["prior_energy"], energy, rtol=1e-6)
    assert len(np.unique(energy)) > 5  # of 64 codes


@pytest.fixture(scope="module")
def with_covariates():
    """A model of cells with a donor, a sex and a score."""
    rng = np.random.default_rng(0)
    adata = simulate(120, 30, n_types=3, seed=0)
    adata.obs["donor"] = pd.Categorical(rng.choice(["d1", "d2", "d3"], 120))
    adata.obs["sex"] = rng.choice(["f", "m"], 120)
    adata.obs["score"] = rng.random(120)
    QBMVI.setup_anndata(
        adata,
        batch_key="batch",
        categorical_covariate_keys=["donor", "sex"],
        continuous_covariate_keys=["score"],
    )
    model = QBMVI(adata, n_latent=6)
    model.train(1, enable_progress_bar=False)
    return adata, model


def test_registered_covariates_come_from_one_training_cell(with_covariates):
    adata, model = with_covariates
    drawn = model.sample_cells(80, seed=5)
    columns = ["batch", "donor", "sex", "score"]
    assert list(drawn.obs) == [*columns, "prior_energy"]
    like = adata.obs[columns].iloc[random_cells(model, 80, 5)]
    pd.testing.assert_frame_equal(
        drawn.obs[columns].reset_index(drop=True), like.reset_index(drop=True)
    )
    known = adata.obs.iloc[model.train_indices]["score"]
    assert set(drawn.obs["score"]) <= set(known)


def test_a_given_batch_stands_in_obs_beside_the_covariates(with_covariates):
    _, model = with_covariates
    drawn = model.sample_cells(30, batch="batch_1")
    assert set(drawn.obs["batch"]) == {"batch_1"} and drawn.obs["donor"].nunique() > 1


def test_no_covariates_no_columns():
    adata = simulate(60, 20, n_types=3, seed=0)
    QBMVI.setup_anndata(adata)
    model = QBMVI(adata, n_latent=4)
    model.train(1, enable_progress_bar=False)
    assert list(model.sample_cells(10).obs) == ["prior_energy"]


# -- how they were made --------------------------------------------------------------------------


def test_uns_says_how_the_cells_were_made(models):
    model = models[1]["QBMVI"]
    plain = model.sample_cells(5).uns["sample_cells"]
    assert plain == {"model": "QBMVI", "sampler": "default", "seed": 0}
    sampler = ExactSampler()
    asked = model.sample_cells(5, batch="batch_1", library_size=500.0, sampler=sampler, seed=3)
    assert asked.uns["sample_cells"] == {
        "model": "QBMVI",
        "sampler": repr(sampler),
        "seed": 3,
        "batch": "batch_1",
        "library_size": 500.0,
    }


@pytest.mark.parametrize("options", [{}, {"batch": "batch_0", "library_size": 800.0}])
def test_synthetic_cells_are_written_and_read(with_covariates, tmp_path, options):
    _, model = with_covariates
    drawn = model.sample_cells(20, **options)
    drawn.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (read.X != drawn.X).nnz == 0 and read.uns["sample_cells"] == drawn.uns["sample_cells"]
    np.testing.assert_array_equal(read.obsm["code"], drawn.obsm["code"])
    pd.testing.assert_frame_equal(read.obs, drawn.obs, check_categorical=False, check_dtype=False)


def test_a_model_with_other_cells_forgets_which_it_was_trained_on(models, tmp_path):
    adata, trained = models
    model = trained["QBMVI"]
    model.save(tmp_path / "m")
    few = QBMVI.load(tmp_path / "m", adata=adata[:80].copy())
    assert few.sample_cells(50).n_obs == 50
    chosen = random_cells(few, 500, 0)
    assert set(chosen) == set(range(80))  # all of them, and not the positions of the old ones
    again = QBMVI.load(tmp_path / "m", adata=adata.copy())
    assert set(random_cells(again, 5000, 0)) == set(model.train_indices)
    other = adata[::-1].copy()  # as many, in another order
    moved = QBMVI.load(tmp_path / "m", adata=other)
    assert set(random_cells(moved, 5000, 0)) == set(range(adata.n_obs))


def test_a_depth_is_refused_where_size_factors_scale_the_counts():
    adata = simulate(100, 20, seed=0)
    adata.obs["size"] = np.asarray(adata.X.sum(1)).ravel()
    QBMVI.setup_anndata(adata, size_factor_key="size")
    model = QBMVI(adata, n_latent=4, n_hidden=8)
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    assert model.sample_cells(10).n_obs == 10
    with pytest.raises(ValueError, match="`library_size` cannot be set: the model has a size_f"):
        model.sample_cells(10, library_size=100)
