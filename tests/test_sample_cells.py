"""Synthetic cells: codes from the prior, counts from the decoder."""

import numpy as np
import pytest
import torch
from helpers import two_models


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
    from scqbm.model._decoding import decode

    adata, trained = models
    like = np.random.default_rng(0).integers(0, adata.n_obs, 150)  # unsorted, repeated
    drawn = decode(trained["SCVI"], np.zeros((150, 3)), like)
    depth = np.asarray(adata.X.sum(1)).ravel()[like]
    assert np.corrcoef(np.asarray(drawn.X.sum(1)).ravel(), depth)[0, 1] > 0.8
    assert (drawn.obs["batch"].to_numpy() == adata.obs["batch"].iloc[like].to_numpy()).all()
