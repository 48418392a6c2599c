"""New cells that resemble some of the data, or with units fixed; and cells of given codes."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_one_sentence
from scipy.optimize import minimize
from scipy.special import logsumexp
from small_models import BITS, BITS_HIDDEN, NORMAL, each_family, trained

from scqbm import QBMVI
from scqbm.ising import all_states
from scqbm.samplers import DimodSampler


def strong(family, scale=2.0):
    """A trained model whose prior has strong couplings."""
    model = trained(family)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.module.prior.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return model


def distribution(model):
    """All codes of bits, and their probabilities."""
    prior = model.module.prior
    codes = all_states(prior.n_latent)
    with torch.no_grad():
        return codes.numpy(), (-prior.energy(codes)).double().softmax(0).numpy()


@pytest.mark.parametrize("family", [BITS, BITS_HIDDEN], ids=["halves", "hidden"])
def test_codes_with_fixed_units_follow_the_conditional_prior(family):
    model = strong(family)
    codes, p = distribution(model)
    agree = (codes[:, 0] == 1) & (codes[:, 4] == 0)
    p = np.where(agree, p, 0) / p[agree].sum()
    drawn = model.sample_prior(4000, steer={0: 1, 4: 0})
    assert (drawn[:, 0] == 1).all() and (drawn[:, 4] == 0).all()
    found = np.bincount((drawn @ 2 ** np.arange(codes.shape[1])).astype(int), minlength=len(p))
    assert np.abs(found / 4000 - p).max() < 5 * np.sqrt(p.max() / 4000)
    assert np.abs(drawn.mean(0) - model.sample_prior(4000).mean(0)).max() > 0.1


def test_fixed_units_of_a_continuous_code():
    model = strong(NORMAL, 1.0)
    rbm = model.module.prior.rbm()
    h = all_states(rbm.n_hidden).double()
    a, W = rbm.a.double(), rbm.W.double()
    # given v_1 = 1.5: a mixture over h with the weight of the density of v_1
    mean = rbm.to(torch.float64).visible_field(h)
    log_p = -rbm.to(torch.float64).hidden_free_energy(h) - (1.5 - mean[:, 1]).square() / 2
    p = log_p.softmax(0)
    expected = (p @ mean).numpy()
    drawn = model.sample_prior(8000, steer={1: 1.5})
    assert (drawn[:, 1] == 1.5).all() and a.shape[0] == W.shape[0] == drawn.shape[1]
    others = [0, 2, 3, 4]
    np.testing.assert_allclose(drawn.mean(0)[others], expected[others], atol=0.1)


@each_family
def test_codes_like_some_cells_have_their_mean(family):
    """For bits, also the distribution: the prior times exp(fields . code), nothing else."""
    model = strong(family)
    codes = model.get_latent_representation()
    cells = np.argsort(codes[:, 0])[-15:]
    drawn = model.sample_prior(4000, like=cells)
    wanted = codes[cells].mean(0).astype(float)
    atol = 0.25 if family is NORMAL else 0.04
    np.testing.assert_allclose(drawn.mean(0), wanted, atol=atol)
    if family is NORMAL:
        return
    states, p = distribution(model)
    # the tilted prior with this mean minimises a convex function of the fields
    best = minimize(
        lambda c: logsumexp(np.log(p) + states @ c) - c @ wanted, np.zeros(len(wanted))
    )
    q = np.exp(np.log(p) + states @ best.x - best.fun - best.x @ wanted)
    np.testing.assert_allclose(q @ states, wanted, atol=1e-3)
    found = np.bincount((drawn @ 2 ** np.arange(states.shape[1])).astype(int), minlength=len(p))
    assert np.abs(found / 4000 - q).sum() / 2 < 0.1


def test_more_strength_goes_further_the_same_way():
    model = strong(BITS, 0.5)
    codes = model.get_latent_representation()
    cells = np.argsort(codes[:, 0])[-15:]
    free, once, twice = (
        model.sample_prior(4000, **given).mean(0)
        for given in ({}, {"like": cells}, {"like": cells, "strength": 3})
    )
    moved = np.abs(once - free) > 0.1
    assert moved.any()
    assert (np.sign(twice - once) == np.sign(once - free))[moved].all()


def test_like_takes_columns_a_mask_or_positions_and_their_batch_and_depth():
    model = trained()
    obs = model.adata.obs
    of_batch = (obs["batch"] == "batch_1").to_numpy()
    by_column = model.sample_cells(40, like={"batch": "batch_1"})
    assert set(by_column.obs["batch"]) == {"batch_1"}
    named = ["batch_1"], {"batch_1"}, pd.Series(["batch_1"])
    for same in (of_batch, np.flatnonzero(of_batch), *({"batch": one} for one in named)):
        again = model.sample_cells(40, like=same)
        assert (again.X != by_column.X).nnz == 0
    both = model.sample_cells(200, like={"batch": "batch_1"}, batch="batch_0")
    assert set(both.obs["batch"]) == {"batch_0"}
    deep = np.argsort(np.asarray(model.adata.X.sum(1)).ravel())[-5:]
    total = np.asarray(model.sample_cells(200, like=deep).X.sum(1)).mean()
    assert total > 1.1 * np.asarray(model.sample_cells(200).X.sum(1)).mean()  # and their depth
    one = model.sample_cells(30, like=[3], seed=1)
    assert one.n_obs == 30  # a single cell serves as well


def test_like_and_steer_together_and_with_another_sampler(tmp_path):
    model = strong(BITS)
    made = model.sample_cells(
        60,
        like={"labels": "label_0"},
        steer={2: 1},
        sampler=DimodSampler.simulated_annealing(n_sweeps=200),
    )
    assert (made.obsm["code"][:, 2] == 1).all()
    made.write_h5ad(tmp_path / "made.h5ad")  # with how it was made
    how = anndata.read_h5ad(tmp_path / "made.h5ad").uns["sample_cells"]
    assert how["like"]["labels"].tolist() == ["label_0"] and how["steer"]["2"] == 1


def test_cells_of_given_codes():
    model = trained()
    codes = model.get_latent_representation()[:7]
    cells = model.decode(codes, batch="batch_1", library_size=300.0, seed=2)
    np.testing.assert_allclose(cells.obsm["code"], codes)
    assert set(cells.obs["batch"]) == {"batch_1"} and cells.n_vars == model.adata.n_vars
    with torch.no_grad():
        energy = model.module.prior.energy(torch.from_numpy(codes)).numpy()
    np.testing.assert_allclose(cells.obs["prior_energy"], energy, rtol=1e-5)
    assert (model.decode(codes, seed=5).X != model.decode(codes, seed=5).X).nnz == 0
    like = model.decode(codes, like={"batch": "batch_0"})
    assert set(like.obs["batch"]) == {"batch_0"}


def test_new_cells_like_some_go_to_a_file(tmp_path):
    model = trained()
    model.write_samples(tmp_path / "cells.h5ad", 30, like={"batch": "batch_0"}, silent=True)
    assert set(anndata.read_h5ad(tmp_path / "cells.h5ad").obs["batch"]) == {"batch_0"}


def test_conditions_and_the_landscape_of_a_loaded_minified_or_query_model(tmp_path):
    model = trained()
    model.save(tmp_path / "model", save_anndata=True)
    loaded = QBMVI.load(tmp_path / "model")
    cells = loaded.sample_cells(20, like={"labels": "label_1"})
    assert (cells.X != model.sample_cells(20, like={"labels": "label_1"}).X).nnz == 0
    query = model.adata.copy()
    query.obs["batch"] = "new"
    mapped = QBMVI.load_query_data(query, loaded)
    mapped.train(1, accelerator="cpu", enable_progress_bar=False)
    for one in (mapped, loaded):
        one.get_landscape(labels_key="labels", silent=True)
        assert one.adata.obs["basin"].notna().all()
        assert len(one.get_programs(n_genes=2, silent=True)) == 10
    assert set(mapped.sample_cells(20, like={"batch": "new"}).obs["batch"]) == {"new"}
    codes = loaded.get_latent_representation(return_dist=True)
    loaded.adata.obsm["mean"], loaded.adata.obsm["variance"] = codes
    loaded.minify_adata(use_latent_qzm_key="mean", use_latent_qzv_key="variance")
    assert loaded.get_landscape(silent=True).obs["n_cells"].sum() == loaded.adata.n_obs
    assert loaded.sample_cells(20, like={"labels": "label_1"}).n_obs == 20
    assert len(loaded.get_programs(n_genes=2, silent=True)) == 10


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"like": {"type": "B"}}, "`like` names 'type'"),
        ({"like": {"batch": "nowhere"}}, "`like` asks for 'nowhere' in 'batch'"),
        ({"like": []}, "`like` names no cells"),
        ({"like": {"batch": []}}, "`like` names no cells"),
        ({"like": [True]}, "`like` is a mask of shape"),
        ({"like": [5000]}, "`like` holds 5000"),
        ({"steer": [1, 2]}, "`steer` must be a dict"),
        ({"steer": {99: 1}}, "`steer` must name units from 0 to 4, not 99"),
        ({"steer": {True: 1}}, "`steer` must name units"),
        ({"steer": {"a": 1}}, "`steer` must name units"),
        ({"steer": {1: 0.5}}, "`steer` must give unit 1 the value 0 or 1, not 0.5"),
        ({"steer": {1: float("nan")}}, "`steer` must give unit 1"),
        ({"like": [0], "strength": 0}, "`strength` must be positive"),
        ({"n_samples": 2.5}, "`n_samples` must be an integer"),
    ],
)
def test_bad_conditions(given, says):
    model = trained()
    for method in (model.sample_cells, model.sample_prior):
        with pytest.raises(ValueError, match=says) as error:
            method(**given)
        assert_one_sentence(error.value)


def test_bad_codes():
    model = trained()
    for codes, says in (
        (np.zeros((3, 4)), r"`codes` must have the shape \(n_cells, 5\)"),
        (np.zeros((0, 5)), "`codes` must have the shape"),
        (np.full((2, 5), np.nan), "`codes` must be finite"),
        (np.full((2, 5), 2.0), "`codes` of bits must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            model.decode(codes)
        assert_one_sentence(error.value)
    loader = model._make_data_loader(model.adata)
    with pytest.raises(ValueError, match="`dataloader` stands for the cells"):
        model.decode(np.zeros((2, 5)), like=[0], dataloader=loader)
