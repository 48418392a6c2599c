"""QBMVI where SCVI was: construction, storage, query mapping, minified data, inference."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import scvi
import torch
from scvi.data import synthetic_iid
from scvi.dataloaders import AnnDataLoader, DataSplitter
from scvi.external import SOLO
from scvi.model import SCANVI, SCVI

from scqbm import QBMVI
from scqbm.ising import all_states
from scqbm.samplers import GibbsSampler

QUIET = {"accelerator": "cpu", "batch_size": 32, "enable_progress_bar": False}
BITS = {"latent_distribution": "bernoulli", "n_latent": 5}
BITS_HIDDEN = {"latent_distribution": "bernoulli", "n_latent": 7, "n_prior_hidden": 3}
NORMAL = {"latent_distribution": "normal", "n_latent": 5, "n_prior_hidden": 4}
each_family = pytest.mark.parametrize(
    "family", [BITS, BITS_HIDDEN, NORMAL], ids=["halves", "hidden", "normal"]
)
bits_or_normal = pytest.mark.parametrize("family", [BITS, NORMAL], ids=["bits", "normal"])


def data(**kwargs):
    scvi.settings.seed = 0
    return synthetic_iid(**{"batch_size": 40, "n_genes": 30, **kwargs})


def trained(family=BITS, epochs=2, adata=None, labels_key=None, lr=1e-3, **kwargs):
    scvi.settings.seed = 0
    adata = data() if adata is None else adata
    QBMVI.setup_anndata(adata, batch_key="batch", labels_key=labels_key)
    model = QBMVI(adata, n_hidden=16, **family, **kwargs)
    model.train(epochs, plan_kwargs={"lr": lr, "prior_lr": 0.05}, **QUIET)
    return model


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


def test_model_before_data():
    adata = data(n_batches=3)
    QBMVI.setup_anndata(adata, batch_key="batch")
    datamodule = DataSplitter(QBMVI._get_most_recent_anndata_manager(adata))
    datamodule.n_vars, datamodule.n_batch = adata.n_vars, 3
    with pytest.warns(UserWarning, match="initialized without `adata`"):
        model = QBMVI(
            n_latent=5,
            use_observed_lib_size=False,
            library_log_means=np.full((1, 3), 4.0),
            library_log_vars=np.ones((1, 3)),
        )
    assert model.module is None
    with pytest.raises(RuntimeError, match="datamodule"):
        model.sample_prior()
    with pytest.raises(ValueError, match="max_epochs"):
        model.train(datamodule=datamodule)
    with pytest.raises(AttributeError):
        model.train()
    model.train(1, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    assert not model.module.use_observed_lib_size
    assert model.module.decoder.px_decoder.fc_layers[0][0].in_features == 5 + 3
    assert model.sample_prior(3).shape == (3, 5)


@bits_or_normal
def test_model_from_a_datamodules_registry(tmp_path, family):
    adata = data()
    QBMVI.setup_anndata(adata, batch_key="batch")
    manager = QBMVI._get_most_recent_anndata_manager(adata)
    datamodule = DataSplitter(manager)
    datamodule.registry = {
        **manager.registry,
        "model_name": "SCVI",
        "setup_method_name": "setup_datamodule",
    }
    datamodule.n_vars, datamodule.n_batch, datamodule.n_labels = adata.n_vars, 2, 1
    datamodule.n_samples = datamodule.batch_labels = datamodule.label_keys = None
    model = QBMVI(registry=datamodule.registry, n_hidden=16, **family)
    assert datamodule.registry["model_name"] == "SCVI"  # the caller's dict is left alone
    model.train(1, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    model.save(tmp_path / "model", datamodule=datamodule)
    loaded = QBMVI.load(tmp_path / "model", adata=False, accelerator="cpu")
    assert loaded.registry["model_name"] == "QBMVI"
    loader = AnnDataLoader(manager, batch_size=20)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(dataloader=loader),
        model.get_latent_representation(dataloader=loader),
    )
    assert loaded.module.prior.log_z == model.module.prior.log_z


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


# -- the prior ----------------------------------------------------------------------------------


@each_family
def test_sample_prior(family):
    model = trained(family)
    z = model.sample_prior(4000)
    assert z.shape == (4000, family["n_latent"])
    assert (set(np.unique(z)) == {0, 1}) == (family is not NORMAL)
    np.testing.assert_array_equal(z, model.sample_prior(4000))
    assert not np.array_equal(z, model.sample_prior(4000, seed=1))
    other = model.sample_prior(4000, sampler=GibbsSampler(n_sweeps=300))
    np.testing.assert_allclose(z.mean(0), other.mean(0), atol=6 * z.std() / np.sqrt(2000))


def test_sample_prior_beyond_enumeration():
    """The default for large priors is block Gibbs: here one that enumeration still reaches."""
    model = trained({"n_latent": 36}, epochs=1)
    prior, generator = model.module.prior, torch.Generator().manual_seed(0)
    for parameter in prior.parameters():
        parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator)
    z = torch.from_numpy(model.sample_prior(4000))
    rbm = prior.rbm()
    h = all_states(rbm.n_hidden)
    p = torch.softmax(-rbm.hidden_free_energy(h).double(), 0).float()
    v_given_h = rbm.visible_field(h).sigmoid()
    exact_v, exact_h = p @ v_given_h, p @ h
    exact_vh = (v_given_h * p[:, None]).T @ h
    v, h = z[:, :18], z[:, 18:]
    # at most 1/2 over sqrt(4000) each: five of those
    assert torch.allclose(v.mean(0), exact_v, atol=0.04)
    assert torch.allclose(h.mean(0), exact_h, atol=0.04)
    assert torch.allclose(v.T @ h / len(z), exact_vh, atol=0.04)


@pytest.mark.parametrize("method", ["sample_prior", "sample_cells"])
def test_sampling_nothing(method):
    with pytest.raises(ValueError, match="`n_samples` must be at least 1, not 0"):
        getattr(trained(), method)(0)


@each_family
def test_prior_energy(family):
    model = trained(family)
    energy = model.get_prior_energy(indices=[5, 1, 7], batch_size=2)
    assert energy.shape == (3,) and np.isfinite(energy).all()
    assert model.get_prior_energy().shape == (80,)
    if family is BITS:
        z = torch.as_tensor(model.get_latent_representation(indices=[5, 1, 7]))
        exact = model.module.prior.energy(z).detach().numpy()
        np.testing.assert_allclose(energy, exact, rtol=1e-5)


# -- the encoder's view of the genes --------------------------------------------------------------


def test_input_dropout_hides_its_share_in_training_only():
    model = trained(input_dropout=0.25)
    encoder, seen = model.module.z_encoder, []
    encoder.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    genes, batch = torch.ones(400, 30), torch.zeros(400, 1)
    for training in (True, False):
        encoder.train(training)(genes, batch)
    hidden = (seen[0] == 0).float().mean().item()
    assert hidden == pytest.approx(0.25, abs=0.03) and (seen[1] == 1).all()


def test_input_dropout_never_hides_covariates():
    adata = data()
    adata.obs["age"] = np.arange(adata.n_obs, dtype=float) + 1
    QBMVI.setup_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])
    model, seen = QBMVI(adata, encode_covariates=True, input_dropout=0.5, **BITS), []
    trunk = model.module.z_encoder.encoder
    trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.train(1, **QUIET)
    seen = torch.cat(
        [x for x in seen if x.shape[-1] == 31 and (x[:, :30] == 0).float().mean() > 0.4]
    )
    assert len(seen) >= 72 and (seen[:, 30] > 0).all()


@bits_or_normal
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_decoder_drops_its_share_in_training_only(family, share):
    model = trained(family, decoder_dropout=share, n_layers=2)
    decoder, inner = model.module.decoder.px_decoder, []
    for layer in decoder.fc_layers:  # ReLU's own zeros would count as dropped
        next(p for p in layer if isinstance(p, torch.nn.ReLU)).register_forward_hook(
            lambda *call: call[2] + 1
        )
    decoder.fc_layers[1][0].register_forward_pre_hook(lambda _, inputs: inner.append(inputs[0]))
    z, batch = torch.rand(400, model.module.n_latent), torch.zeros(400, 1, dtype=torch.long)
    for training in (True, False):
        for units in (decoder.train(training)(z, batch), inner.pop()[:, :16]):
            dropped = (units == 0).float().mean().item()
            assert dropped == pytest.approx(share * training, abs=0.03)


@pytest.mark.parametrize("wrong", [1.0, -0.1, "half"])
def test_bad_decoder_dropout(wrong):
    adata = data()
    QBMVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="`decoder_dropout`"):
        QBMVI(adata, decoder_dropout=wrong)


@pytest.mark.parametrize(
    ("family", "n", "dropout", "of_decoder", "bonus"),
    [
        (BITS, 80, 0.3, 0.292, 0.5),
        (BITS, 2000, 0.3, 0.1, 0.25),
        (BITS, 8000, 0.125, 0.0, 0.1),
        (NORMAL, 80, 0.0, 0.0, 0.0),
    ],
)
def test_fewer_cells_hide_more_and_settle_less(family, n, dropout, of_decoder, bonus):
    adata = data(batch_size=n // 2, n_genes=5)
    QBMVI.setup_anndata(adata)
    model = QBMVI(adata, **family)
    assert model.module.entropy_bonus == pytest.approx(bonus)
    if family is BITS:
        assert model.module.z_encoder.input_dropout.p == pytest.approx(dropout)
    dropouts = [m.p for m in model.module.decoder.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == ([pytest.approx(of_decoder)] if of_decoder else [])


@pytest.mark.parametrize(
    ("family", "wrong"), [(BITS, 1.0), (BITS, -0.1), (BITS, "half"), (NORMAL, 0.1)]
)
def test_bad_input_dropout(family, wrong):
    adata = data()
    QBMVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="`input_dropout`"):
        QBMVI(adata, input_dropout=wrong, **family)


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
    up = table["lfc_mean"].nlargest(3)
    assert set(up.index) == set(adata.var_names[:3]) and up.min() > 0.5


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
