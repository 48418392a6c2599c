"""QBMVI where SCVI was: construction, storage, query mapping, minified data, inference."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scvi.external import SOLO
from scvi.model import SCANVI, SCVI
from small_models import (
    BITS,
    BITS_HIDDEN,
    NORMAL,
    QUIET,
    bits_or_normal,
    data,
    each_family,
    trained,
)

from scqbm import QBMVI
from scqbm.samplers import GibbsSampler


def coupling(model):
    return model.module.prior.coupling.detach().clone()


class Forbidden(GibbsSampler):
    def sample(self, *args, **kwargs):
        raise AssertionError("a frozen prior needs no draws")


# -- the surface --------------------------------------------------------------------------------


def test_everything_public_of_scvi_is_there():
    public = {name for name in dir(SCVI) if not name.startswith("_")}
    assert public <= set(dir(QBMVI))
    ours = inspect.signature(QBMVI.__init__).parameters
    for name, parameter in inspect.signature(SCVI.__init__).parameters.items():
        assert name in ours
        if name not in ("n_latent", "latent_distribution"):
            assert ours[name].default == parameter.default
    # positional arguments keep their places
    theirs = list(inspect.signature(SCVI.__init__).parameters)[:-1]
    assert list(ours)[: len(theirs)] == theirs


def test_overridden_methods_accept_scvis_calls():
    for name in ("get_aggregated_posterior", "get_importance_weights"):
        ours = inspect.signature(getattr(QBMVI, name)).parameters
        assert list(inspect.signature(getattr(SCVI, name)).parameters) == list(ours), name
    adata = data()
    QBMVI.setup_anndata(adata, None, "batch", "labels")
    model = QBMVI(adata, None, 16, 6)
    model.train(1, "cpu", 1, 0.8, 0.2, enable_progress_bar=False)
    assert model.get_latent_representation(adata, [0, 1, 2], True, 10, 2).shape == (3, 6)
    assert len(model.train_indices) == 64
    assert "QBMVI" in repr(model) or "QBMVI" in model.summary_string


@pytest.mark.parametrize("gene_likelihood", ["zinb", "nb", "poisson", "normal"])
@bits_or_normal
def test_likelihoods(gene_likelihood, family):
    model = trained(family, epochs=1, gene_likelihood=gene_likelihood)
    assert np.isfinite(model.get_elbo())
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=5))
    assert np.isfinite(model.get_normalized_expression(n_samples=2)).all(axis=None)


def test_covariates_size_factors_and_unobserved_library():
    adata = data()
    rng = np.random.default_rng(0)
    adata.obs["size"] = rng.integers(1, 5, adata.n_obs).astype(float)
    adata.obs["site"] = rng.integers(0, 3, adata.n_obs).astype(str)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    keys = {"categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]}
    QBMVI.setup_anndata(adata, batch_key="batch", size_factor_key="size", **keys)
    model = QBMVI(adata, encode_covariates=True, **BITS)
    model.train(1, **QUIET)
    assert np.isfinite(model.get_elbo())
    QBMVI.setup_anndata(adata, batch_key="batch", **keys)
    model = QBMVI(adata, use_observed_lib_size=False, **BITS)
    model.train(1, **QUIET)
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=5))
    assert model.get_latent_library_size().shape == (adata.n_obs, 1)


# -- save, load, map, minify ----------------------------------------------------------------------


@each_family
def test_load_gives_back_what_was_saved(tmp_path, family):
    model = trained(family, relaxation="gumbel", temperature=0.7)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = QBMVI.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    prior = loaded.module.prior
    assert prior.log_z.item() == model.module.prior.log_z.item() != 0
    assert torch.equal(coupling(loaded), coupling(model))
    assert loaded.get_log_partition() == model.get_log_partition()
    if family is not NORMAL:
        encoder = loaded.module.z_encoder
        assert (encoder.relaxation, encoder.temperature) == ("gumbel", 0.7)
    loaded.train(1, **QUIET)


@each_family
@pytest.mark.parametrize("unfrozen", [False, True])
def test_query_mapping(family, unfrozen):
    reference = trained(family)
    query = data()
    query.obs["batch"] = query.obs["batch"].astype(str) + "_new"
    model = QBMVI.load_query_data(query, reference, accelerator="cpu", unfrozen=unfrozen)
    before = model.module.state_dict()
    before = {k: v.clone() for k, v in before.items() if k.startswith("prior.")}
    assert torch.equal(before["prior.coupling"], coupling(reference))
    sampler = GibbsSampler() if unfrozen else Forbidden()
    model.train(2, sampler=sampler, check_val_every_n_epoch=1, **QUIET)
    after = model.module.state_dict()
    same = [torch.equal(before[key], after[key]) for key in before]
    assert not any(same[:3]) if unfrozen else all(same)
    assert np.isfinite(model.get_latent_representation()).all()
    assert model.get_elbo() != reference.get_elbo()


@each_family
@pytest.mark.parametrize("counts", ["", "_with_counts"])
def test_minified(tmp_path, family, counts):
    model = trained(family)
    adata, latent = model.adata, model.get_latent_representation()
    energy = model.get_prior_energy()
    expression = model.get_normalized_expression(n_samples=300)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = model.get_latent_representation(
        return_dist=True
    )
    model.minify_adata("latent_posterior_parameters" + counts)
    assert model.minified_data_type == "latent_posterior_parameters" + counts
    np.testing.assert_array_equal(model.get_latent_representation(), latent)
    if family is BITS:
        np.testing.assert_allclose(model.get_prior_energy(), energy, rtol=1e-5)
    drawn = np.unique(model.get_latent_representation(representation="sample"))
    assert (set(drawn) == {0, 1}) == (family is not NORMAL)
    minified = model.get_normalized_expression(n_samples=300)
    np.testing.assert_allclose(minified, expression, rtol=0.5)
    assert abs(minified - expression).mean(axis=None) < 0.02 * expression.mean(axis=None)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = QBMVI.load(tmp_path / "model", accelerator="cpu")
    assert loaded.minified_data_type == model.minified_data_type
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)


# -- the latent space ---------------------------------------------------------------------------


def test_representations_of_bits():
    model = trained(BITS_HIDDEN)
    mean = model.get_latent_representation()
    assert mean.shape == (80, 7) and (mean > 0).all() and (mean < 1).all()
    np.testing.assert_array_equal(mean, model.get_latent_representation(representation="mean"))
    logits = model.get_latent_representation(representation="logits")
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), mean, rtol=1e-4)
    draws = [model.get_latent_representation(representation="sample") for _ in range(200)]
    assert set(np.unique(draws)) == {0, 1}
    np.testing.assert_allclose(np.mean(draws, 0), mean, atol=5 * 0.5 / np.sqrt(200))
    qzm, qzv = model.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(qzm, mean)
    np.testing.assert_allclose(qzv, mean * (1 - mean), rtol=1e-5)
    with pytest.raises(ValueError, match="representation"):
        model.get_latent_representation(representation="logits", return_dist=True)


def test_representations_of_a_continuous_code():
    model = trained(NORMAL)
    mean, var = model.get_latent_representation(return_dist=True)
    draws = [model.get_latent_representation(representation="sample") for _ in range(200)]
    np.testing.assert_allclose(np.var(draws, 0).mean(), var.mean(), rtol=0.1)
    np.testing.assert_allclose(np.mean(draws, 0), mean, atol=6 * np.sqrt(var.max() / 200))


@bits_or_normal
@pytest.mark.parametrize("dof", [3.0, None])
def test_saturated_units_keep_densities_finite(family, dof):
    model = trained(family)
    bias = model.module.z_encoder.mean_encoder.bias
    with torch.no_grad():
        bias[:2] = torch.tensor([50.0, -50.0])
    mean = model.get_latent_representation()
    if family is BITS:
        assert (mean[:, 0] == 1).all() and (mean[:, 1] < 1e-6).all()
    posterior = model.get_aggregated_posterior(dof=dof)
    assert posterior.log_prob(torch.as_tensor(mean)).isfinite().all()
    draws = posterior.sample((50,))
    assert draws.shape == (50, 5) and posterior.log_prob(draws).isfinite().all()
    model.differential_abundance(sample_key="batch", dof=dof)
    table = model.adata.obsm["da_log_probs"]
    assert table.shape == (80, 2) and np.isfinite(table).all(axis=None)


def test_aggregated_posterior_is_the_mixture():
    model = trained()
    p = model.get_latent_representation(indices=[3, 8])
    z = np.array([1, 0, 0, 1, 1])
    exact = np.log(np.prod(np.where(z, p, 1 - p), axis=1).mean())
    posterior = model.get_aggregated_posterior(indices=[3, 8])
    assert posterior.log_prob(torch.tensor(z)).item() == pytest.approx(exact, rel=1e-4)


# -- what SCVI's users do next -------------------------------------------------------------------


@bits_or_normal
@pytest.mark.parametrize("weights", ["uniform", "importance"])
def test_differential_expression(family, weights):
    adata = data()
    first = (adata.obs["labels"] == "label_0").to_numpy()
    adata.X[first, :3] = adata.X[first, :3] * 8 + 20
    # 80 cells in minibatches of 32 are too few to ask for mixing: its noise would drown 30 genes,
    # as a bonus made for thousands would
    bits = {"entropy_bonus": 0.0} if family is BITS else {}
    model = trained({**family, **bits}, 60, adata, "labels", lr=0.02, batch_mixing=0.0)
    groups = {"groupby": "labels", "group1": "label_0", "weights": weights, "silent": True}
    assert "bayes_factor" in model.differential_expression(n_samples_overall=50, **groups)
    table = model.differential_expression(mode="change", n_samples_overall=200, **groups)
    assert np.isfinite(table.select_dtypes(float)).all(axis=None)
    up, others = np.split(table["lfc_mean"].sort_values(ascending=False), [3])
    assert set(up.index) == set(adata.var_names[:3]) and up.min() > 3 * others.max()


@bits_or_normal
def test_posterior_predictive_and_correlations(family):
    model = trained(family)
    counts = model.posterior_predictive_sample(n_samples=3)
    assert counts.shape == (80, 30, 3)
    counts = np.asarray(counts.todense() if hasattr(counts, "todense") else counts)
    assert (counts >= 0).all() and (counts == counts.round()).all() and counts.max() > 0
    matrix = model.get_feature_correlation_matrix(n_samples=2, correlation_type="pearson")
    assert matrix.shape == (30, 30)
    np.testing.assert_allclose(np.diag(matrix), 1, rtol=1e-4)


@bits_or_normal
def test_solo_starts_from_qbmvi(family):
    adata = data()
    QBMVI.setup_anndata(adata)
    model = QBMVI(adata, n_hidden=16, **family)
    model.train(1, **QUIET)
    solo = SOLO.from_scvi_model(model)
    solo.train(1, accelerator="cpu", enable_progress_bar=False, train_size=0.8)
    assert solo.predict().shape == (80, 2)


@pytest.mark.parametrize("is_trained", [False, True])
def test_scanvi_refuses(is_trained):
    model = trained(labels_key="labels", epochs=1)
    model.is_trained_ = is_trained
    with pytest.raises(TypeError, match="SCANVI.*QBMVI"):
        SCANVI.from_scvi_model(model, unlabeled_category="unknown")


SCRIPT = """
import json, sys
import scvi, scvi.model
before = set(sys.modules)
import scqbm
new = sorted(set(sys.modules) - before)
adata = scvi.data.synthetic_iid(batch_size=20, n_genes=5)
scqbm.QBMVI.setup_anndata(adata, batch_key="batch")
scqbm.QBMVI(adata).view_anndata_setup()
print("NEW" + json.dumps(new))
"""


def test_import_is_light_and_cures_the_view_of_the_setup():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    new = json.loads(done.stdout.split("NEW")[1])
    packages = {name.split(".")[0] for name in new}
    assert packages <= {"scqbm", "rich", "attr"}  # rich.pretty looks for attrs
    assert not {"dimod", "dwave", "scanpy", "scib_metrics"} & packages
