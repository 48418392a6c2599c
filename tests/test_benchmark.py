"""The benchmark itself: known truths come out, known failures are survived."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData
from scipy import sparse

from scqbm import QBMVI, benchmark
from scqbm.benchmark import _integration
from scqbm.benchmark._classification import CLASSIFIERS
from scqbm.benchmark._generation import mmd, two_sample_accuracy
from scqbm.benchmark._inputs import log_normalised, subsample
from scqbm.benchmark._trajectory import energy_against_order
from scqbm.data import simulate

TYPES, BATCHES = 4, 2


def value(table, method, metric, group=None):
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    if group is not None:
        rows = rows[rows["group"] == group]
    (only,) = rows["value"]
    return only


@pytest.fixture(scope="module")
def cells():
    """Counts, and three embeddings: types only, batches only, noise."""
    rng = np.random.default_rng(0)
    n = 240
    types, batches = np.arange(n) % TYPES, np.arange(n) // TYPES % BATCHES
    obs = pd.DataFrame({"type": types, "batch": batches}).astype(str)
    noise = rng.normal(size=(n, 5))
    adata = AnnData(sparse.csr_matrix(rng.poisson(2.0, (n, 60)).astype(np.float32)), obs=obs)
    adata.obsm["types"] = noise + 20 * np.eye(5)[types]
    adata.obsm["batches"] = noise + 20 * np.eye(5)[batches]
    adata.obsm["noise"] = noise
    return adata


# -- subsets and values --------------------------------------------------------------------------


def test_subsample_keeps_proportions_and_rare_strata():
    strata = np.repeat(["a", "b", "c"], [600, 395, 5])
    keep = subsample(strata, 100, seed=0)
    assert len(np.unique(keep)) == 100
    counts = pd.Series(strata[keep]).value_counts()
    assert abs(counts["a"] - 60) <= 1 and abs(counts["b"] - 39) <= 1 and counts["c"] == 1
    assert (keep == subsample(strata, 100, seed=0)).all()
    assert (keep != subsample(strata, 100, seed=1)).any()
    assert len(subsample(np.arange(50), 20, 0)) == 20  # more strata than cells
    assert len(subsample(strata, None, 0)) == 1000


def test_log_normalisation_leaves_the_counts_and_other_values_alone():
    counts = sparse.csr_matrix(np.array([[1.0, 3.0], [0.0, 2.0]], np.float32))
    logged = log_normalised(counts)
    assert np.allclose(np.expm1(logged.toarray()).sum(1), 1e4, rtol=1e-5)
    assert counts.toarray().sum() == 6
    assert log_normalised(logged) is logged


# -- integration ---------------------------------------------------------------------------------


FEW = {
    "bio": {
        "nmi_ari_cluster_labels_kmeans": ("KMeans NMI", "KMeans ARI"),
        "silhouette_label": ("Silhouette label",),
    },
    "batch": {"graph_connectivity": ("Graph connectivity",), "ilisi_knn": ("iLISI",)},
}


@pytest.fixture
def few(monkeypatch):
    """Without the metrics that JAX compiles for a minute."""
    monkeypatch.setattr(_integration, "METRICS", FEW)


@pytest.fixture(scope="module")
def scib(cells):
    """All metrics, in one call for several tests."""
    embeddings = {"perfect": "types", "wrong": "batches", "shuffled": cells.obsm["types"][::-1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="(umap|sklearn|numba|jax|scib_metrics|scanpy).*")
        return benchmark.integration(cells, "batch", "type", embeddings)


def test_integration_ranks_a_perfect_embedding_first(cells, few):
    scib = benchmark.integration(cells, "batch", "type", {"perfect": "types", "wrong": "batches"})
    assert value(scib, "perfect", "ARI", "leiden") > 0.99
    assert value(scib, "perfect", "KMeans ARI") > 0.99
    assert value(scib, "perfect", "Bio conservation") > value(scib, "wrong", "Bio conservation")
    assert value(scib, "perfect", "Batch correction") > value(scib, "wrong", "Batch correction")
    assert value(scib, "perfect", "Total") > value(scib, "wrong", "Total") + 0.2
    assert value(scib, "wrong", "KMeans ARI") < 0.2
    assert value(scib, "wrong", "iLISI") < 0.01


@pytest.mark.slow
def test_integration_agrees_with_benchmarker(cells, scib):
    """Metric by metric and in one go are the same; so are our averages and scIB's."""
    from scib_metrics.benchmark import Benchmarker

    from scqbm.benchmark._inputs import pca
    from scqbm.benchmark._integration import exact_neighbours

    adata = cells.copy()
    adata.obsm["before"] = pca(adata.X)
    adata.obsm["types"] = adata.obsm["types"].astype(np.float32)
    whole = Benchmarker(
        adata, "batch", "type", ["types"], pre_integrated_embedding_obsm_key="before",
        progress_bar=False,
    )  # fmt: skip
    whole.prepare(exact_neighbours)
    whole.benchmark()
    theirs = whole.get_results(min_max_scale=False).loc["types"]
    assert len(theirs) == 13
    for metric, expected in theirs.items():
        assert value(scib, "perfect", metric) == pytest.approx(expected, abs=1e-6), metric


def test_undefined_metric_is_left_out_of_all_averages():
    rows = [
        ("a", "batch", "KBET", 0.1), ("a", "batch", "iLISI", 0.5), ("a", "bio", "cLISI", 0.8),
        ("b", "batch", "KBET", np.nan), ("b", "batch", "iLISI", 0.7), ("b", "bio", "cLISI", 0.6),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "group", "metric", "value"])
    with pytest.warns(UserWarning, match="KBET.*'b'"):
        scores = benchmark.aggregates(table)
    assert value(scores, "a", "Batch correction") == 0.5
    assert value(scores, "b", "Batch correction") == 0.7
    assert value(scores, "a", "Total") == pytest.approx(0.4 * 0.5 + 0.6 * 0.8)


def test_integration_survives_a_metric_that_fails(cells, few, monkeypatch):
    def fails(*args, **kwargs):
        raise FloatingPointError("no")

    monkeypatch.setattr("scib_metrics.ilisi_knn", fails)
    with pytest.warns(UserWarning, match="could not compute ilisi_knn"):
        table = benchmark.integration(cells, "batch", "type", {"e": "types"}, leiden=False)
    assert np.isnan(value(table, "e", "iLISI"))
    assert np.isfinite(value(table, "e", "Total"))


@pytest.mark.slow
def test_integration_survives_labels_in_one_batch(cells):
    adata = cells[:, :].copy()
    adata.obs["type"] = adata.obs["batch"] + "x"  # kBET and BRAS have nothing to compare
    with pytest.warns(UserWarning):
        table = benchmark.integration(adata, "batch", "type", {"e": "types"}, leiden=False)
    assert np.isnan(value(table, "e", "KBET"))
    assert np.isfinite(value(table, "e", "Total"))


def test_integration_without_batches_and_with_missing_labels(cells, few):
    adata = cells.copy()
    adata.obs.loc[adata.obs_names[:3], "type"] = None
    with pytest.warns(UserWarning, match="3 cells have no label"):
        table = benchmark.integration(adata, None, "type", {"e": "types"}, leiden=False)
    assert set(table["group"]) == {"bio", "aggregate"}
    assert "Total" not in set(table["metric"])


def test_integration_on_a_subset(cells, few):
    table = benchmark.integration(
        cells, "batch", "type", {"e": "types"}, max_cells=120, leiden=False
    )
    assert value(table, "e", "KMeans ARI") > 0.99


def test_bad_input_is_named(cells):
    with pytest.raises(ValueError, match="`embeddings` must be a dict"):
        benchmark.integration(cells, "batch", "type", ["types"])
    with pytest.raises(ValueError, match="key of adata.obsm"):
        benchmark.integration(cells, "batch", "type", {"e": "nothing"})
    with pytest.raises(ValueError, match="one row a cell"):
        benchmark.integration(cells, "batch", "type", {"e": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="NaN"):
        benchmark.integration(cells, "batch", "type", {"e": np.full((240, 2), np.nan)})
    with pytest.raises(ValueError, match="`label_key`"):
        benchmark.classification(cells, "nothing", {"e": "types"})
    with pytest.raises(ValueError, match="more than 90 cells"):
        benchmark.integration(cells[:80].copy(), "batch", "type", {"e": "types"})
    with pytest.raises(ValueError, match="at least two groups"):
        one_batch = cells[cells.obs["batch"] == "0"].copy()
        benchmark.integration(one_batch, "batch", "type", {"e": "types"})


def test_plot_of_a_table_with_an_undefined_metric(tmp_path):
    rows = [
        (method, group, metric, score)
        for method, score in (("a", 0.2), ("b", 0.7))
        for group, metric in (("bio", "cLISI"), ("batch", "KBET"), ("batch", "iLISI"))
    ]
    table = pd.DataFrame(rows, columns=["method", "group", "metric", "value"])
    table.loc[1, "value"] = np.nan
    with pytest.warns(UserWarning, match="KBET"):
        table = pd.concat([table, benchmark.aggregates(table)])
    benchmark.plot_integration(table, tmp_path / "scib.png")
    assert (tmp_path / "scib.png").stat().st_size > 10_000


# -- classification ------------------------------------------------------------------------------


def test_classification_of_types_and_of_noise(cells):
    table = benchmark.classification(
        cells, "type", {"types": "types", "noise": "noise"}, batch_key="batch"
    )
    for group in ("within", "across"):
        for metric in (
            "logistic regression accuracy",
            "kNN macro-F1",
            "gradient boosting macro-F1",
        ):
            assert value(table, "types", metric, group) > 0.98
        # noise tells nothing: chance is 1/4, and 240 cells give it a spread of .03
        assert value(table, "noise", "accuracy", group) == pytest.approx(1 / TYPES, abs=0.1)


def test_classification_across_batches_sees_what_does_not_transfer(cells):
    """Types readable in each batch, but by opposite signs."""
    sign = np.where(cells.obs["batch"] == "0", 1.0, -1.0)[:, None]
    flipped = np.hstack([sign * (cells.obsm["types"] - 5), 100 * sign])
    table = benchmark.classification(
        cells, "type", {"flipped": flipped}, batch_key="batch", classifiers=("kNN",)
    )
    assert value(table, "flipped", "accuracy", "within") > 0.98
    assert value(table, "flipped", "accuracy", "across") < 0.6


def test_rare_labels_are_left_out_and_said(cells):
    adata = cells.copy()
    adata.obs.loc[adata.obs_names[:2], "type"] = "rare"
    with pytest.warns(UserWarning, match="rare"):
        table = benchmark.classification(adata, "type", {"e": "types"}, classifiers=("kNN",))
    assert value(table, "e", "kNN macro-F1") > 0.98


def test_rare_types_do_not_spoil_the_common_ones():
    """Boosted trees without regularisation lose a sixth of all cells to two types of eight."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(7), [300] * 5 + [8] * 2)
    codes = (rng.standard_normal((7, 20)) * 1.06)[labels] + rng.standard_normal((1516, 20))
    adata = AnnData(np.zeros((1516, 1)), obs={"type": labels.astype(str)}, obsm={"codes": codes})
    table = benchmark.classification(adata, "type", {"e": "codes"})
    for classifier in CLASSIFIERS:
        assert value(table, "e", f"{classifier} accuracy", "within") > 0.95


# -- trajectory ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fork():
    """A stem that forks into two arms, in the plane."""
    rng = np.random.default_rng(0)
    n = 450
    time, arm = rng.random(n), np.arange(n) % 2
    late = np.clip(time - 0.5, 0, None)
    line = np.stack([time, np.where(arm == 0, late, -late)], 1) + 0.01 * rng.normal(size=(n, 2))
    branch = np.where(time < 0.5, "stem", np.where(arm == 0, "up", "down"))
    return AnnData(
        obs=pd.DataFrame({"time": time, "branch": branch, "start": time < 0.05}),
        obsm={"line": line, "noise": rng.normal(size=(n, 2))},
    )


def test_trajectory_of_a_known_fork(fork):
    table = benchmark.trajectory(
        fork, {"line": "line", "noise": "noise"}, "time", branch_key="branch", tips=["up", "down"]
    )
    assert value(table, "line", "Kendall") > 0.9
    assert value(table, "line", "Spearman") > 0.99
    assert value(table, "line", "Kendall within branches") > 0.9
    assert value(table, "line", "branch accuracy") > 0.95
    assert value(table, "line", "unreachable") == 0
    assert abs(value(table, "noise", "Kendall")) < 0.2
    assert value(table, "noise", "branch accuracy") < 0.75


def test_pseudotime_of_a_line_is_its_order(fork):
    line = fork[fork.obs["branch"] != "down"].copy()
    table = benchmark.trajectory(line, {"line": "line"}, "time", root_key="start")
    assert value(table, "line", "Kendall") > 0.95
    assert value(table, "line", "Spearman") > 0.99


def test_trajectory_survives_a_broken_graph_and_unknown_orders(fork):
    adata = fork.copy()
    adata.obsm["line"][adata.obs["time"] > 0.8] += 50  # far away: another component
    adata.obs.loc[adata.obs_names[::10], "time"] = np.nan
    table = benchmark.trajectory(adata, {"e": "line"}, "time", root_key="start")
    assert 0.1 < value(table, "e", "unreachable") < 0.3
    assert value(table, "e", "Kendall") > 0.7


def test_energy_against_order():
    order = np.linspace(0, 1, 200)
    rising = energy_against_order(3 * order, order)
    assert rising["Kendall"] == pytest.approx(1) and rising["rising pairs"] == 1
    assert rising["p-value"] == pytest.approx(2 * 0.5**100)  # 100 pairs, all the same way
    flat = energy_against_order(np.random.default_rng(0).random(200), order)
    assert flat["p-value"] > 0.01


# -- generation ----------------------------------------------------------------------------------


def test_two_sample_tests_know_same_from_different():
    rng = np.random.default_rng(0)
    a, b, moved = rng.normal(size=(3, 300, 5))
    moved = moved + 4
    for classifier in ("gradient boosting", "logistic regression"):
        # 600 guesses: a spread of .02
        assert two_sample_accuracy(a, b, classifier) == pytest.approx(0.5, abs=0.08)
        assert two_sample_accuracy(moved, b, classifier) > 0.97
    assert abs(mmd(a, b)) < 0.01
    assert mmd(moved, b) > 0.5
    # unbiased: below zero as often as above
    signs = [mmd(x, y) > 0 for x, y in rng.normal(size=(60, 2, 40, 3))]
    assert 0.25 < np.mean(signs) < 0.75


def test_generation_of_real_and_of_unreal_cells():
    adata = simulate(1200, 100, n_types=3, n_batches=1, type_strength=2.0, seed=0)
    other, adata = adata.X[:300].toarray(), adata[300:].copy()
    held_out, counts = np.arange(0, 900, 3), adata.X.toarray()
    shuffled = np.random.default_rng(0).permuted(other, axis=0)  # same genes, no cells
    one_type = counts[np.flatnonzero(adata.obs["cell_type"] == "type_0")]
    table = benchmark.generation(
        adata,
        {"real": other, "shuffled": shuffled, "one type": one_type},
        held_out,
        label_key="cell_type",
    )
    for method in ("real", "real cells"):
        assert value(table, method, "two-sample accuracy") == pytest.approx(0.5, abs=0.08)
        assert value(table, method, "composition") < 0.1
        assert value(table, method, "gene correlation agreement") > 0.5  # 300 cells, weak ties
    assert value(table, "shuffled", "two-sample accuracy") > 0.8
    assert value(table, "shuffled", "gene zero fraction") < 0.05
    assert value(table, "shuffled", "gene correlation agreement") < 0.3
    assert value(table, "shuffled", "MMD") > 5 * abs(value(table, "real", "MMD"))
    share = (adata.obs["cell_type"].iloc[held_out] != "type_0").mean()
    assert value(table, "one type", "composition") == pytest.approx(share, abs=0.05)


# -- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    scvi.settings.seed = 0
    adata = simulate(200, 30, n_types=3, seed=0)
    trained = {}
    for name, cls, kwargs in (
        ("QBMVI", QBMVI, {"n_latent": 6}),
        ("SCVI", scvi.model.SCVI, {"n_latent": 3}),
    ):
        cls.setup_anndata(adata, batch_key="batch")
        trained[name] = cls(adata, gene_likelihood="nb", **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained[name].train(2, train_size=0.8, enable_progress_bar=False)
    return adata, trained


def test_likelihood_of_models(models):
    _, trained = models
    before = torch.get_rng_state()
    table = benchmark.likelihood(trained, n_draws=200)
    assert torch.equal(before, torch.get_rng_state())
    for name in trained:
        # the importance-weighted bound is the tighter one
        bound = -value(table, name, "negative ELBO")
        assert value(table, name, "marginal log-likelihood") > bound
        assert value(table, name, "reconstruction") < -bound
    assert value(table, "QBMVI", "log Z error") == 0  # six bits: exact
    again = benchmark.likelihood(trained, n_draws=200)
    assert table["value"].equals(again["value"])


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


def test_generation_of_both_kinds_of_model(models):
    adata, trained = models
    held_out = trained["SCVI"].validation_indices
    table = benchmark.generation(adata, trained, held_out, label_key="cell_type")
    for name in trained:
        assert 0.3 <= value(table, name, "two-sample accuracy") <= 1
        assert 0 <= value(table, name, "composition") <= 1
