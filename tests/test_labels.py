"""QBMANVI: cells of which some have a known type."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from helpers import assert_one_sentence
from lightning.pytorch.callbacks import ModelCheckpoint
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from sklearn.linear_model import LogisticRegression
from training_helpers import Counting, Watch

from scqbm import QBMANVI, QBMVI, data
from scqbm.ising import all_states
from scqbm.module import BitPosterior
from scqbm.samplers import ExactSampler

QUIET = {"accelerator": "cpu", "batch_size": 32, "enable_progress_bar": False}
FAMILIES = [
    {"n_latent": 8, "n_prior_hidden": 0},
    {"n_latent": 6, "n_prior_hidden": 4},
    {"latent_distribution": "normal", "n_latent": 4, "n_prior_hidden": 4},
]
each_family = pytest.mark.parametrize("family", FAMILIES, ids=["halves", "hidden", "normal"])


def groups(n_cells=300, hidden=0.5, seed=0):
    """Simulated cells of three types; the labels of some are hidden."""
    adata = data.simulate(500, 100, 3, 2, type_strength=2.0, seed=seed)[:n_cells].copy()
    known = np.random.default_rng(seed).random(n_cells) >= hidden
    adata.obs["label"] = np.where(known, adata.obs["cell_type"].astype(str), "Unknown")
    return adata


def set_up(adata):
    QBMANVI.setup_anndata(adata, "label", "Unknown", batch_key="batch")


def make(adata=None, seed=0, **kwargs):
    scvi.settings.seed = seed
    adata = groups() if adata is None else adata
    set_up(adata)
    return QBMANVI(adata, **{"n_latent": 8, "n_hidden": 16, **kwargs})


@pytest.fixture(scope="module")
def trained():
    model = make(n_latent=16, n_prior_hidden=0)
    model.train(60, plan_kwargs={"lr": 5e-3, "prior_lr": 0.02}, **QUIET)
    return model


# -- prediction ---------------------------------------------------------------------------------


def test_hidden_labels_are_found(trained):
    adata = trained.adata
    hidden = (adata.obs["label"] == "Unknown").to_numpy()
    predicted = trained.predict()
    assert predicted.shape == (adata.n_obs,)
    assert (predicted == adata.obs["cell_type"].to_numpy())[hidden].mean() > 0.9
    assert set(predicted) == set(adata.obs["cell_type"])


def test_probabilities_of_labels(trained):
    table = trained.predict(soft=True, indices=[3, 1, 4])
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == list(trained.adata.obs_names[[3, 1, 4]])
    assert sorted(table.columns) == sorted(trained.adata.obs["cell_type"].unique())
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-5)
    # a regression of sklearn on the codes of one scale, fitted here anew
    codes = trained.get_latent_representation()
    codes = (codes - codes.mean(0)) / codes.std(0)
    known = np.intersect1d(trained._labeled_indices, trained.train_indices_)
    labels = trained.adata.obs["label"].astype(str).to_numpy()
    fit = LogisticRegression(max_iter=2000).fit(codes[known], labels[known])
    theirs = pd.DataFrame(fit.predict_proba(codes[[3, 1, 4]]), columns=fit.classes_)
    np.testing.assert_allclose(table, theirs[table.columns], atol=1e-3)
    drawn = trained.predict(soft=True, use_posterior_mean=False)
    assert not np.allclose(drawn, trained.predict(soft=True))


def test_a_label_whose_cells_are_all_held_out_is_learnt_nevertheless():
    adata = groups()
    rare = adata.obs["cell_type"].iloc[0]
    of_it = np.flatnonzero((adata.obs["cell_type"] == rare).to_numpy())
    adata.obs.iloc[of_it, adata.obs.columns.get_loc("label")] = "Unknown"
    adata.obs.iloc[of_it[0], adata.obs.columns.get_loc("label")] = rare
    model = make(adata, n_latent=16)
    others = np.delete(np.arange(adata.n_obs), of_it[0])
    split = {"external_indexing": [others, of_it[:1]]}
    model.train(40, plan_kwargs={"lr": 5e-3}, datasplitter_kwargs=split, **QUIET)
    # one cell tells a part of the others; without the last fit, none is ever found
    assert (model.predict(indices=of_it) == rare).mean() > 0.2


def test_a_query_keeps_the_posterior_of_its_reference(trained):
    """A query of one type would forget the others."""
    query = groups(seed=1)
    query.obs["label"] = query.obs["cell_type"].iloc[0]
    for unfrozen in ({}, {"freeze_classifier": False}):
        QBMANVI.prepare_query_anndata(query, trained)
        mapped = QBMANVI.load_query_data(query, trained, **unfrozen)
        mapped.train(1, **QUIET)
        assert len(set(mapped.predict())) == 3


def test_cells_to_which_no_label_is_probable(trained):
    labelled = (trained.adata.obs["label"] != "Unknown").to_numpy()
    in_training = np.zeros(len(labelled), bool)
    in_training[trained.train_indices_] = True
    kept = trained.predict(reject=0.25)
    share = (kept == "Unknown")[labelled & in_training].mean()
    assert share == pytest.approx(0.25, abs=0.03)
    same = kept != "Unknown"
    assert (kept[same] == trained.predict()[same]).all()
    surest = trained.predict(soft=True).max(axis=1)
    assert surest[~same].max() < surest[same].min()


def test_energies_of_labels(trained):
    energies = trained.get_label_energies(indices=[5, 2, 7])
    assert list(energies.index) == list(trained.adata.obs_names[[5, 2, 7]])
    prior = trained.module.prior
    codes = torch.as_tensor(trained.get_latent_representation(indices=[5, 2, 7]))
    for rbm, bias, name in zip(prior.machines(), prior.label_bias, energies, strict=True):
        visible, hidden = prior.layers(codes)
        expected = (rbm.energy(visible, hidden) - bias).detach()
        np.testing.assert_allclose(energies[name], expected, rtol=1e-4)


def test_prediction_of_minified_cells_and_from_a_dataloader(trained):
    expected = trained.predict(soft=True)
    loader = trained._make_data_loader(trained.adata, batch_size=50)
    np.testing.assert_allclose(trained.predict(soft=True, dataloader=loader), expected, rtol=1e-4)
    adata = trained.adata.copy()
    model = make(adata, n_latent=16)
    model.train(1, **QUIET)
    full = model.predict(soft=True)
    qzm, qzv = model.get_latent_representation(return_dist=True)
    adata.obsm["m"], adata.obsm["v"] = qzm, qzv
    model.minify_adata(use_latent_qzm_key="m", use_latent_qzv_key="v")
    np.testing.assert_allclose(model.predict(soft=True), full, rtol=1e-4)


# -- the loss -----------------------------------------------------------------------------------


def a_loss(model, labels=None, **kwargs):
    """The record of the loss of ten cells, at the same draw of their codes."""
    tensors = next(iter(model._make_data_loader(model.adata, indices=np.arange(10))))
    if labels is not None:
        tensors[REGISTRY_KEYS.LABELS_KEY] = torch.as_tensor(labels).view(-1, 1)
    torch.manual_seed(0)
    model.module.eval()
    return model.module(tensors, loss_kwargs=kwargs)[2]


@each_family
def test_cells_without_labels_have_the_loss_of_qbmvi(family):
    adata = groups()
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    plain = QBMVI(adata, n_hidden=16, batch_mixing=0, **family)  # whose weight follows the KL
    plain.train(2, **QUIET)
    labelled = QBMANVI.from_qbmvi_model(plain, "Unknown", labels_key="label")
    labelled.is_trained_ = True
    labelled.module.prior.start_from(plain.module.prior.state_dict())
    for parameter in labelled.module.classifier.parameters():
        torch.nn.init.zeros_(parameter)
    ours, theirs = a_loss(labelled, [3] * 10), a_loss(plain)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    np.testing.assert_allclose(
        labelled.get_latent_representation(), plain.get_latent_representation(), rtol=1e-5
    )
    # fields of 0 make all labels as likely: each known one costs log 3
    known = a_loss(labelled, [0, 1, 2, 0, 1] + [3] * 5)
    assert known.loss.item() == pytest.approx(ours.loss.item() + 0.5 * np.log(3), rel=1e-5)


def test_a_posterior_that_is_not_the_best_costs_its_divergence():
    model = make(batch_mixing=0)
    model.is_trained_ = True
    prior, classifier = model.module.prior, model.module.classifier
    torch.nn.init.normal_(prior.label_field)
    ours = a_loss(model, [3] * 10)
    codes = torch.as_tensor(model.get_latent_representation(indices=np.arange(10)))
    best = prior.label_scores(codes).log_softmax(-1)
    q = classifier(codes).log_softmax(-1)
    divergence = (q.exp() * (q - best)).sum(-1).mean()
    with torch.no_grad():
        classifier.weight.copy_(prior.label_field)
        classifier.bias.copy_(prior.label_bias)
    assert (ours.loss - a_loss(model, [3] * 10).loss).item() == pytest.approx(
        divergence.item(), rel=1e-3
    )


def test_classification_ratio(trained):
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    tensors = next(iter(trained._make_data_loader(trained.adata, indices=np.arange(20, 30))))
    tensors[REGISTRY_KEYS.LABELS_KEY] = torch.zeros(10, 1)
    classifier = trained.module.classifier
    classifier.weight_of_penalty.fill_(0.01)
    plain = a_loss(trained, labels)
    more = a_loss(trained, labels, labelled_tensors=tensors, classification_ratio=7.0)
    codes = torch.as_tensor(trained.get_latent_representation(indices=np.arange(20, 30)))
    surprise = -classifier(codes).log_softmax(-1)[:, 0].mean()
    penalty = 0.01 * (classifier.weight * classifier.scale).square().sum()
    assert (more.loss - plain.loss).item() == pytest.approx(
        7 * (surprise + penalty).item(), rel=1e-3
    )
    more.loss.backward()
    classifier.weight_of_penalty.fill_(0.0)
    assert all(p.grad is not None for p in classifier.parameters())
    trained.module.zero_grad()
    plain.loss.backward()  # the posterior learns from known labels only
    assert all(p.grad is None or (p.grad == 0).all() for p in classifier.parameters())
    trained.module.zero_grad()


# -- training -----------------------------------------------------------------------------------


@each_family
def test_log_z_and_its_parts_after_training(family):
    model = make(**family)
    model.train(3, plan_kwargs={"prior_lr": 0.05}, **QUIET)
    exact, prior = model.get_log_partition(), model.module.prior
    assert exact.error == 0
    assert prior.log_z.item() == pytest.approx(exact.value, abs=1e-4)
    assert torch.allclose(prior.log_masses.double(), exact.of_labels, atol=1e-4)
    for name in ("train_accuracy", "train_classification_loss", "prior_beta", "prior_ess"):
        assert np.isfinite(model.history[name].to_numpy(dtype=float)).all()


def test_the_label_unit_starts_from_the_codes():
    adata = groups()
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    plain = QBMVI(adata, n_latent=16, n_hidden=16)
    plain.train(40, plan_kwargs={"lr": 5e-3}, **QUIET)
    model = QBMANVI.from_qbmvi_model(plain, "Unknown", labels_key="label")
    with pytest.raises(RuntimeError, match="untrained"):
        model.predict()
    model.is_trained_ = True
    hidden = (adata.obs["label"] == "Unknown").to_numpy()
    truth = adata.obs["cell_type"].to_numpy()
    assert (model.predict() == truth)[hidden].mean() > 0.9
    assert model.get_log_partition().of_labels == pytest.approx(model.module.prior.log_masses)
    two = adata[adata.obs["label"] != model._types()[0]].copy()
    smaller = QBMANVI.from_qbmvi_model(plain, "Unknown", labels_key="label", adata=two)
    smaller.is_trained_ = True
    known = ~(two.obs["label"] == "Unknown").to_numpy()
    assert (smaller.predict() == two.obs["label"].to_numpy())[known].mean() > 0.9


def test_the_start_is_the_optimum_of_cross_entropy_and_penalty():
    """So the penalty has the weight of the regression's, and no factor is lost."""
    adata = groups()
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    plain = QBMVI(adata, n_latent=16, n_hidden=16)
    plain.train(20, plan_kwargs={"lr": 5e-3}, **QUIET)
    model = QBMANVI.from_qbmvi_model(plain, "Unknown", labels_key="label")
    model.is_trained_ = True
    classifier, known = model.module.classifier, model._labeled_indices
    codes = torch.as_tensor(model.get_latent_representation(indices=known))
    names = list(model._types())
    labels = torch.tensor([names.index(x) for x in adata.obs["label"].iloc[known]])

    def slope(weight):
        cross = torch.nn.functional.cross_entropy(classifier(codes), labels)
        loss = cross + weight * classifier.penalty()
        (grad,) = torch.autograd.grad(loss, classifier.weight)
        return (grad / classifier.scale).norm().item()

    # not 0, since the regression stops at a tolerance
    assert slope(1) < min(slope(0.5), slope(2), slope(0)) / 4


def test_log_z_is_followed_label_by_label():
    model = make()
    prior, off = model.module.prior, []

    def look(plan):
        off.append((prior.log_masses.double() - prior.log_partition().of_labels).abs().max())

    model.train(
        4,
        sampler=ExactSampler(),
        plan_kwargs={"prior_lr": 0.03, "n_negatives": 3 * 4096},
        callbacks=[Watch("on_before_zero_grad", look)],
        **QUIET,
    )
    assert len(off) > 10
    assert max(off) < 0.1


def test_each_label_has_its_own_negatives():
    model = make()
    sampler = Counting()
    model.train(2, sampler=sampler, plan_kwargs={"prior_lr": 0.05, "n_negatives": 120}, **QUIET)
    steps = 2 * -(-len(model.train_indices_) // 32)
    assert len(sampler.draws) == 3 * steps
    assert all(len(draws.visible) == 40 for draws in sampler.draws)
    assert model.module.prior.negative_counts == [40, 40, 40]
    few = make()
    few.train(1, sampler=Counting(), plan_kwargs={"n_negatives": 9}, **QUIET)
    assert few.module.prior.negative_counts == [32, 32, 32]


def test_the_chains_of_all_labels_go_on_from_a_checkpoint(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    runs = []
    for kept in ({"callbacks": [saver]}, {"ckpt_path": str(tmp_path / "epoch=1.ckpt")}):
        model = make()
        prior = model.module.prior
        watch = Watch("on_before_zero_grad", lambda _, p=prior: p.negatives.clone())
        callbacks = [*kept.pop("callbacks", []), watch]
        model.train(3, callbacks=callbacks, enable_checkpointing=True, **kept, **QUIET)
        runs.append(watch.seen)
    whole, resumed = runs
    steps = len(whole) // 3
    assert len(resumed) == steps
    assert torch.equal(resumed[0], whole[2 * steps])


def test_saved_models(trained, tmp_path):
    trained.save(tmp_path / "model", overwrite=True)
    loaded = QBMANVI.load(tmp_path / "model", trained.adata)
    np.testing.assert_array_equal(loaded.predict(), trained.predict())
    assert torch.equal(loaded.module.prior.log_masses, trained.module.prior.log_masses)
    assert loaded.unlabeled_category_ == "Unknown"


def test_query_cells(trained):
    query = groups(n_cells=500)[380:].copy()
    query.obs["batch"], query.obs["label"] = "new", "Unknown"
    before = {k: v.clone() for k, v in trained.module.prior.state_dict().items()}
    model = QBMANVI.load_query_data(query, trained)
    model.train(3, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    with pytest.raises(ValueError, match="`reject` needs labelled cells"):
        model.predict(reject=0.1)
    accuracy = (model.predict() == query.obs["cell_type"].to_numpy()).mean()
    assert accuracy > 0.8
    for name, value in model.module.prior.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_query_without_the_column_counts_as_unlabelled(trained):
    query = groups(n_cells=60)
    del query.obs["label"]
    with pytest.warns(UserWarning, match="Filling in with unlabeled category"):
        model = QBMANVI.load_query_data(query, trained)
    model.train(1, **QUIET)
    assert model.predict().shape == (60,)


# -- cells on request ---------------------------------------------------------------------------


def strong(**family):
    model = make(**family)
    model.train(1, **QUIET)
    torch.manual_seed(3)
    prior = model.module.prior
    for parameter in prior.parameters():
        parameter.data = 1.5 * torch.randn(parameter.shape)
    prior.set_log_partition(prior.log_partition())
    return model


def tables(model):
    """All codes, and the probability of each with each label."""

    prior = model.module.prior
    codes = all_states(prior.n_latent)
    with torch.no_grad():
        log_p = (
            prior.label_scores(codes) - (prior.energy(codes) - prior.label_energy(codes))[:, None]
        )
    return codes.numpy(), log_p.flatten().double().softmax(0).reshape(log_p.shape).numpy()


def frequencies(drawn, n_codes):
    rows = (drawn @ 2 ** np.arange(drawn.shape[1])).astype(int)
    return np.bincount(rows, minlength=n_codes) / len(drawn)


def agree(found, p, n=4000):
    assert np.abs(found - p).max() < 5 * np.sqrt(p.max() / n)


@pytest.mark.parametrize("family", FAMILIES[:2], ids=["halves", "hidden"])
def test_draws_follow_the_mixture_and_its_parts(family):
    model = strong(**family)
    codes, p = tables(model)
    agree(frequencies(model.sample_prior(4000), len(codes)), p.sum(1))
    types = model._types()
    for i, name in enumerate(types):
        drawn = model.sample_prior(4000, like={"label": name}, seed=i)
        agree(frequencies(drawn, len(codes)), p[:, i] / p[:, i].sum())
        rows = frequencies(drawn, len(codes)) > 0
        assert rows.sum() > 3
    held = codes[:, 2] == 1
    given = np.where(held, p.sum(1), 0) / p[held].sum()
    agree(frequencies(model.sample_prior(4000, steer={2: 1}), len(codes)), given)


def test_new_cells_of_a_type(trained):
    name = trained._types()[1]
    cells = trained.sample_cells(200, like={"label": name})
    again = trained.predict(_registered(cells, trained))
    assert (again == name).mean() > 0.7  # a third by chance
    both = trained.sample_cells(100, like={"label": list(trained._types()[:2])})
    assert set(trained.predict(_registered(both, trained))) >= set(trained._types()[:2])
    # cells named by another column, or by position, are matched type by type
    some = np.flatnonzero(trained.predict() == name)[:40]
    near = trained.sample_cells(100, like=some)
    assert (trained.predict(_registered(near, trained)) == name).mean() > 0.7


def _registered(cells, model):
    cells.obs["label"] = "Unknown"
    return cells


# -- wrong input --------------------------------------------------------------------------------


def test_columns_of_labels_that_cannot_be_used():
    adata = groups(60)
    cases = {
        "^`labels_key` must be a column": lambda: QBMANVI.setup_anndata(adata, "nope", "Unknown"),
        "at least two labels": lambda: _with(adata, ["one"] * 30 + ["Unknown"] * 30),
        "but has none": lambda: _with(adata, ["Unknown"] * 60),
        "10 cells have no value": lambda: _with(adata, [None] * 10 + ["a"] * 25 + ["b"] * 25),
    }
    for text, call in cases.items():
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert_one_sentence(caught.value)
    with pytest.warns(UserWarning, match="so all cells count as labelled"):
        QBMANVI.setup_anndata(adata, "cell_type", "Unknown")
    model = QBMANVI(adata, n_latent=6, n_hidden=16)
    model.train(1, **QUIET)
    assert len(model._unlabeled_indices) == 0


def _with(adata, labels):
    adata = adata.copy()
    adata.obs["label"] = labels
    QBMANVI.setup_anndata(adata, "label", "Unknown")


def test_labels_that_the_reference_lacks(trained):
    query = groups(60)
    query.obs["label"] = np.where(np.arange(60) < 5, "a new type", "Unknown")
    with pytest.raises(ValueError, match="a new type") as caught:
        QBMANVI.load_query_data(query, trained)
    assert_one_sentence(caught.value)


def test_models_to_start_from():
    adata = groups(60)
    SCVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(TypeError, match="must be a QBMVI, not SCVI") as caught:
        QBMANVI.from_scvi_model(SCVI(adata), "Unknown", labels_key="label")
    assert_one_sentence(caught.value)
    QBMVI.setup_anndata(adata, batch_key="batch")
    plain = QBMVI(adata, n_latent=6, n_hidden=16)
    plain.train(1, **QUIET)
    with pytest.raises(ValueError, match="`labels_key` must be given") as caught:
        QBMANVI.from_qbmvi_model(plain, "Unknown")
    assert_one_sentence(caught.value)
    other = groups(60)
    del other.obs["batch"]
    with pytest.raises((ValueError, KeyError), match="batch"):
        QBMANVI.from_qbmvi_model(plain, "Unknown", labels_key="label", adata=other)
    with pytest.warns(UserWarning, match="`n_latent` is left out: the QBMVI model has 6"):
        QBMANVI.from_qbmvi_model(plain, "Unknown", labels_key="label", n_latent=9)


def test_arguments_of_scanvi():
    adata = groups(60)
    set_up(adata)
    QBMANVI(adata, linear_classifier=True, use_labels_groups=False)
    for wrong in (
        {"linear_classifier": False},
        {"use_labels_groups": True},
        {"classifier_parameters": {"logits": False}},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
            QBMANVI(adata, **wrong)
        assert_one_sentence(caught.value)


def test_wrong_arguments(trained):
    for text, call in {
        "`reject` must be 0 or more and below 1": lambda: trained.predict(reject=1.0),
        "`classification_ratio` must not be negative": lambda: make().train(
            1, plan_kwargs={"classification_ratio": -1}, **QUIET
        ),
        "'nothing'": lambda: trained.sample_cells(5, like={"label": "nothing"}),
    }.items():
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert_one_sentence(caught.value)


def test_dispersion_by_label_and_posteriors():
    model = make(dispersion="gene-label", gene_likelihood="nb")
    model.train(1, **QUIET)
    assert np.isfinite(model.get_elbo())
    assert isinstance(model.module.z_encoder(torch.zeros(2, 100))[0], BitPosterior)


def test_a_landscape_is_for_qbmvi(trained):
    with pytest.raises(NotImplementedError, match="call it on the QBMVI model") as caught:
        trained.get_landscape()
    assert_one_sentence(caught.value)


def test_rejecting_needs_the_cells_that_the_model_was_trained_on(trained, tmp_path):
    trained.save(tmp_path / "m")
    some = trained.adata[:80].copy()
    loaded = QBMANVI.load(tmp_path / "m", adata=some)
    assert len(loaded.predict()) == 80
    with pytest.raises(ValueError, match="`reject` needs labelled cells among those"):
        loaded.predict(reject=0.3)
