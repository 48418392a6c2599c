"""The scores of what mixing should remove and keep, on embeddings whose answer is known."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scqbm import benchmark
from scqbm.data import simulate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "cells"))
import shifts


@pytest.fixture(scope="module")
def cells():
    return simulate(1200, 100, n_types=4, n_batches=3, seed=0)


def scores(adata, **embeddings):
    table = benchmark.batches(adata, embeddings, "batch", "cell_type")
    return table.pivot(index="method", columns="metric", values="value")


def test_the_probe_finds_the_batch_and_only_the_batch(cells):
    rng = np.random.default_rng(0)
    batch = pd.get_dummies(cells.obs["batch"]).to_numpy(float)
    types = pd.get_dummies(cells.obs["cell_type"]).to_numpy(float)
    noise = 0.3 * rng.standard_normal((cells.n_obs, 4))
    found = scores(cells, batch=np.hstack([3 * batch, noise]), types=10 * types + noise)
    assert found.loc["batch", "batch probe"] == pytest.approx(2 / 3, abs=0.01)  # all, less a guess
    # composition differs between batches, and is not held against the types
    assert abs(found.loc["types", "batch probe"]) < 0.05


def test_neighbours_that_are_kept(cells):
    own = np.zeros((cells.n_obs, 50), np.float32)
    for name in cells.obs["batch"].unique():
        mine = (cells.obs["batch"] == name).to_numpy()
        own[mine] = benchmark.pca(cells.X[mine])
    noise = np.random.default_rng(0).standard_normal((cells.n_obs, 10))
    found = scores(cells, own=own, noise=noise)["neighbours kept"]
    assert found["own"] == pytest.approx(1.0)
    assert found["noise"] == pytest.approx(15 / 399, abs=0.01)


def test_one_batch_has_no_probe(cells):
    one = cells[cells.obs["batch"] == "batch_0"].copy()
    found = scores(one, noise=np.random.default_rng(0).standard_normal((one.n_obs, 3)))
    assert np.isnan(found.loc["noise", "batch probe"])
    assert found.loc["noise", "neighbours kept"] > 0


def test_partial_labels_are_those_that_a_batch_lacks(cells):
    """An embedding that cannot tell two types: only where one of them is missing somewhere."""
    missing = (cells.obs["batch"] == "batch_0") & (cells.obs["cell_type"] == "type_0")
    adata = cells[~missing.to_numpy()].copy()
    merged = adata.obs["cell_type"].astype(str).replace("type_0", "type_1")
    codes = pd.get_dummies(merged).to_numpy(float)
    codes += 0.1 * np.random.default_rng(0).standard_normal(codes.shape)
    table = benchmark.classification(adata, "cell_type", {"codes": codes}, batch_key="batch")
    table = table.set_index(["group", "metric"])["value"]
    assert table["within", "partial macro-F1"] < 0.8 < table["within", "macro-F1"] + 0.1
    whole = benchmark.classification(cells, "cell_type", {"codes": codes_of(cells)})
    assert "partial macro-F1" not in set(whole["metric"])


def codes_of(adata):
    return pd.get_dummies(adata.obs["cell_type"]).to_numpy(float)


def test_deleted_types_are_gone_from_a_batch_and_kept_by_another(cells):
    altered = shifts.without_types(cells, "batch", "cell_type", 0)
    sizes = pd.crosstab(altered.obs["batch"], altered.obs["cell_type"].astype(str))
    assert (sizes == 0).sum(axis=1).max() == 2 and (sizes > 0).sum(axis=0).min() >= 1
    assert altered.uns["deleted"] == sorted(sizes.columns[(sizes == 0).any()])
    same = shifts.without_types(cells, "batch", "cell_type", 0)
    assert list(same.obs_names) == list(altered.obs_names)


def test_skewed_types_keep_a_tenth(cells):
    altered = shifts.skewed_types(cells, "batch", "cell_type", 0)
    before = pd.crosstab(cells.obs["batch"], cells.obs["cell_type"])
    share = pd.crosstab(altered.obs["batch"], altered.obs["cell_type"]) / before
    assert ((share == 1) | (share < 0.3)).to_numpy().all()
    assert (share == 1).any(axis=0).all() and (share < 0.3).any(axis=0).all()


def test_windows_of_an_order_overlap():
    tree = simulate(900, 50, n_types=3, n_batches=3, trajectory=True, seed=0)
    altered = shifts.windows_of_order(tree, "batch", "pseudotime", 0)
    ends = altered.obs.groupby("batch", observed=True)["pseudotime"].agg(["min", "max"])
    assert ends["min"].is_monotonic_increasing and ends["max"].is_monotonic_increasing
    assert ends["min"].iloc[-1] < ends["max"].iloc[0]


def test_batches_with_a_technical_effect(cells):
    altered = shifts.with_batches(cells, 0)
    assert set(altered.obs["batch"]) == {"batch_0", "batch_1"}
    assert (altered.X > cells.X).nnz == 0 and altered.X.sum() < 0.9 * cells.X.sum()
