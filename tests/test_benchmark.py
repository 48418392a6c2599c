"""Integration and classification: known truths are found, known failures are survived."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import value
from scipy import sparse

from scqbm import benchmark
from scqbm.benchmark import _integration
from scqbm.benchmark._classification import CLASSIFIERS
from scqbm.benchmark._inputs import subsample

TYPES, BATCHES = 4, 2


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
        # noise says nothing about types: chance is 1/4, and its standard error over 240 cells 0.03
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


def test_neighbours_are_at_most_the_cells_of_a_small_batch():
    adata = AnnData(np.zeros((200, 1), np.float32))
    adata.obs["cell_type"] = np.tile(["a", "b"], 100)
    adata.obs["batch"] = np.where(np.arange(200) < 188, "large", "small")
    adata.obsm["X"] = np.where(adata.obs["cell_type"] == "a", 0.0, 1.0)[:, None]
    table = benchmark.classification(
        adata, "cell_type", {"x": "X"}, batch_key="batch", classifiers=("kNN",)
    )
    assert value(table[table["group"] == "across"], "x", "kNN accuracy") == 1
