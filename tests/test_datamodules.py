"""Models whose cells come from a datamodule."""

import numpy as np
import pytest
from helpers import assert_one_sentence
from scvi.dataloaders import AnnDataLoader, DataSplitter, SemiSupervisedDataSplitter
from small_models import bits_or_normal, data, each_family

from scqbm import QBMANVI, QBMVI
from scqbm.module import QBVAE, Defaults


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
    with pytest.raises(AttributeError, match="^`datamodule` must be given"):
        model.train()
    model.train(1, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    assert not model.module.use_observed_lib_size
    assert model.module.decoder.px_decoder.fc_layers[0][0].in_features == 5 + 3
    assert model.sample_prior(3).shape == (3, 5)


def splitter(n_cells_per_batch=40):
    """A datamodule, its manager and its data."""
    adata = data(batch_size=n_cells_per_batch)
    QBMVI.setup_anndata(adata, batch_key="batch")
    manager = QBMVI._get_most_recent_anndata_manager(adata)
    datamodule = DataSplitter(manager)
    datamodule.registry = {**manager.registry, "setup_method_name": "setup_datamodule"}
    datamodule.n_vars, datamodule.n_batch, datamodule.n_labels = adata.n_vars, 2, 1
    datamodule.batch_labels = datamodule.label_keys = datamodule.n_samples = None
    return datamodule, manager, adata


def chosen(n_cells):
    return Defaults.for_cells(n_cells)


@pytest.mark.filterwarnings("ignore:Model was initialized without")
def test_defaults_by_the_number_of_cells_however_they_come():
    """80 cells: an AnnData, a bare module, a registry, and a datamodule once it is set up."""
    datamodule, _, adata = splitter()
    assert QBMVI(adata).module.chosen == chosen(80)
    assert QBVAE(30, n_cells=80).chosen == chosen(80)
    assert QBMVI(registry=datamodule.registry).module.chosen == chosen(80)
    model = QBMVI()
    assert "chosen by the number of cells" in model._model_summary_string
    model.train(1, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    assert model.module.chosen == chosen(80)
    assert "decoder_dropout: 0.292" in model._model_summary_string
    assert chosen(80) != chosen(None)


@pytest.mark.filterwarnings("ignore:Model was initialized without")
@pytest.mark.parametrize("attribute", ["n_obs", "n_samples"])
def test_a_datamodule_that_says_how_many(attribute):
    datamodule, _, _ = splitter()
    setattr(datamodule, attribute, 2000)
    model = QBMVI()
    model.train(1, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    assert model.module.chosen == chosen(2000)


def test_a_loaded_model_keeps_its_defaults(tmp_path):
    datamodule, _, _ = splitter()
    model = QBMVI(registry=datamodule.registry, n_hidden=16)
    model.train(1, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    model.save(tmp_path / "model", datamodule=datamodule)
    loaded = QBMVI.load(tmp_path / "model", adata=False, accelerator="cpu")
    assert loaded.module.chosen == model.module.chosen == chosen(80)


@each_family
def test_energies_and_cells_without_an_anndata(family):
    datamodule, manager, adata = splitter()
    model = QBMVI(registry=datamodule.registry, n_hidden=16, **family)
    model.train(1, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    loader = AnnDataLoader(manager, batch_size=30)
    energy = model.get_prior_energy(dataloader=loader)
    assert energy.shape == (80,) and np.isfinite(energy).all()
    cells = model.sample_cells(100, dataloader=loader)
    assert cells.shape == (100, 30) and cells.X.sum() > 0
    # batch and depth are those of the loader's cells, from the start again after the 80th
    batches = adata.obs["batch"].astype(str).tolist()
    assert cells.obs["batch"].tolist() == batches + batches[:20]
    one = model.sample_cells(10, dataloader=loader, batch="batch_1", library_size=500)
    assert (one.obs["batch"] == "batch_1").all()
    for call in (model.get_prior_energy, model.sample_cells):
        with pytest.raises(ValueError, match="^`dataloader` must be given") as caught:
            call()
        assert_one_sentence(caught.value)
    with pytest.raises(ValueError, match="^`dataloader` stands for all cells"):
        model.get_prior_energy(indices=[1], dataloader=loader)
    used = (batch for batch in list(loader)[:0])
    with pytest.raises(ValueError, match="^`dataloader` holds no cells"):
        model.sample_cells(10, dataloader=used)


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


class Without:
    """A loader whose minibatches lack something."""

    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return (self.change(dict(tensors)) for tensors in self.loader)


def no_batch(tensors):
    return {key: value for key, value in tensors.items() if key != "batch"}


def few_genes(tensors):
    return tensors | {"X": tensors["X"][:, :25]}


@pytest.mark.parametrize(
    ("change", "said"), [(no_batch, "A minibatch holds no 'batch', only"), (few_genes, "25 genes")]
)
@pytest.mark.filterwarnings("ignore:Model was initialized without")
def test_minibatches_that_do_not_fit(change, said):
    datamodule, _, _ = splitter()
    whole = datamodule.train_dataloader
    datamodule.train_dataloader = lambda: Without(whole(), change)
    with pytest.raises(ValueError, match=said) as caught:
        QBMVI(n_latent=5).train(1, datamodule=datamodule, accelerator="cpu")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("name", ["n_vars", "n_batch"])
@pytest.mark.filterwarnings("ignore:Model was initialized without")
def test_datamodules_that_tell_too_little(name):
    datamodule, _, _ = splitter()
    delattr(datamodule, name)
    with pytest.raises(ValueError, match=f"it has no {name}") as caught:
        QBMVI(n_latent=5).train(1, datamodule=datamodule)
    assert_one_sentence(caught.value)


@pytest.mark.filterwarnings("ignore:Model was initialized without")
@pytest.mark.parametrize("splits", [DataSplitter, SemiSupervisedDataSplitter])
def test_labels_without_an_anndata(splits):
    """As with SCANVI: minibatches alone, or with some of the labelled cells beside each."""
    adata = data(batch_size=40)
    hidden = np.arange(80) % 5 == 0
    adata.obs["labels"] = np.where(hidden, "unknown", adata.obs["labels"].astype(str))
    QBMANVI.setup_anndata(adata, "labels", "unknown", batch_key="batch")
    manager = QBMANVI._get_most_recent_anndata_manager(adata)
    datamodule = splits(manager)
    datamodule.registry = {**manager.registry, "setup_method_name": "setup_datamodule"}
    datamodule.n_vars, datamodule.n_batch, datamodule.n_labels = adata.n_vars, 2, 4
    datamodule.batch_labels = datamodule.label_keys = datamodule.n_samples = None
    datamodule.labels_ = adata.obs["labels"].to_numpy()
    model = QBMANVI(registry=datamodule.registry, datamodule=datamodule, n_latent=6, n_hidden=16)
    model.train(2, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    loader = AnnDataLoader(manager, batch_size=30)
    types = sorted(set(adata.obs["labels"]) - {"unknown"})
    soft = model.predict(dataloader=loader, soft=True)
    assert soft.shape == (80, len(types)) and sorted(soft.columns) == types
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
    assert (model.predict(dataloader=loader) == soft.columns[soft.to_numpy().argmax(1)]).all()
    assert np.isfinite(model.get_prior_energy(dataloader=loader)).all()
