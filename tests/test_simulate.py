"""Simulated data: their form, and counts that follow the distribution they claim."""

import anndata
import numpy as np
import pytest
from helpers import P_SMALL, assert_same_cells, rates
from scipy import sparse, stats

from scqbm.data import _simulate, simulate


def true_means(adata):
    """Expected counts, from the formula in the docstring of simulate."""
    log_rate = adata.obsm["programs"] @ adata.varm["programs"].T
    log_rate += adata.var["log_base"].to_numpy()
    log_rate += adata.varm["batch_effect"].T[adata.obs["batch"].cat.codes]
    share = np.exp(log_rate) / np.exp(log_rate).sum(1, keepdims=True)
    return adata.obs["library_size"].to_numpy()[:, None] * share


# form


@pytest.mark.parametrize("trajectory", [False, True])
def test_seed_decides_everything(trajectory):
    first = simulate(300, 60, trajectory=trajectory, seed=3)
    assert_same_cells(first, simulate(300, 60, trajectory=trajectory, seed=3))
    other = simulate(300, 60, trajectory=trajectory, seed=4)
    assert (first.X != other.X).mean() > 0.1
    assert not np.array_equal(first.obs["batch"], other.obs["batch"])
    assert not np.array_equal(first.obs["cell_type"], other.obs["cell_type"])


@pytest.mark.parametrize("trajectory", [False, True])
def test_file_round_trip_recreates_the_data(tmp_path, trajectory):
    adata = simulate(300, 60, trajectory=trajectory, batch_strength=0.7, seed=1)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert_same_cells(adata, read)
    # The stored arguments come back as numpy scalars and must still be accepted.
    assert_same_cells(adata, simulate(**read.uns["simulation"]))


@pytest.mark.parametrize("trajectory", [False, True])
def test_form(trajectory):
    adata = simulate(501, 80, n_types=5, n_batches=3, trajectory=trajectory)
    assert sparse.issparse(adata.X) and adata.X.format == "csr" and adata.X.dtype == np.float32
    assert np.all(adata.X.data > 0) and np.all(adata.X.data == np.rint(adata.X.data))
    assert adata.shape == (501, 80) and not adata.layers
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    assert set(adata.obs["batch"].value_counts()) == {167}
    assert list(adata.obs["cell_type"].cat.categories) == [f"type_{i}" for i in range(5)]
    assert set(adata.obs["cell_type"]) == set(adata.obs["cell_type"].cat.categories)
    assert ({"branch", "pseudotime"} <= set(adata.obs)) == trajectory


def test_smallest_cases():
    # As many cells as types: each type has exactly one, even when proportions are extreme.
    adata = simulate(9, 20, n_types=9, n_batches=9, type_concentration=0.01)
    assert adata.obs["cell_type"].nunique() == adata.obs["batch"].nunique() == 9
    assert simulate(1, 1, n_types=1, n_batches=1).shape == (1, 1)
    assert simulate(1, 1, n_types=1, n_batches=1, trajectory=True).shape == (1, 1)


def test_blocks_keep_cells_in_place(monkeypatch):
    monkeypatch.setattr(_simulate, "_BLOCK", 7 * 100)  # 7 cells a block, the last one shorter
    adata = simulate(500, 100, type_strength=2.0, library_sd=1.0)
    mean = true_means(adata)
    variance = mean + adata.var["dispersion"].to_numpy() * mean**2
    z = (adata.X.toarray() - mean) / np.sqrt(variance)
    # A cell in another cell's row would have |z| far from 1. Per-cell mean of z, n_genes terms.
    assert np.abs(z.mean(1)).max() < 6 / np.sqrt(100)
    assert abs((z**2).mean() - 1) < 6 * (z**2).std() / np.sqrt(z.size)


# distributions


def test_mean_and_variance_are_negative_binomial():
    n_cells, dispersion = 4000, 0.5
    adata = simulate(
        n_cells,
        200,
        n_types=1,
        n_batches=1,
        library_sd=0.0,
        dispersion=dispersion,
        dispersion_sd=0.0,
    )
    counts = adata.X.toarray().astype(float)
    expected = true_means(adata)[0]  # all cells share one expectation
    z = (counts.mean(0) - expected) / np.sqrt((expected + dispersion * expected**2) / n_cells)
    assert P_SMALL < stats.chi2.cdf((z**2).sum(), df=200) < 1 - P_SMALL

    # Genes are independent, so their spread gives the standard error of the average estimate.
    high = expected > 1
    estimate = ((counts.var(0, ddof=1) - counts.mean(0)) / counts.mean(0) ** 2)[high]
    error = estimate.std(ddof=1) / np.sqrt(high.sum())
    assert error < 0.02
    assert abs(estimate.mean() - dispersion) < 5 * error

    # The share of zeros tells the negative binomial from others with these two moments.
    shape = 1 / dispersion
    zero = stats.nbinom.pmf(0, shape, shape / (shape + expected))
    z = ((counts == 0).mean(0) - zero) / np.sqrt(zero * (1 - zero) / n_cells)
    testable = n_cells * np.minimum(zero, 1 - zero) > 20
    level = stats.chi2.cdf((z[testable] ** 2).sum(), df=testable.sum())
    assert P_SMALL < level < 1 - P_SMALL


def test_dispersion_differs_between_genes():
    adata = simulate(
        4000, 200, 1, 1, library_sd=0.0, library_size=4000.0, dispersion=0.5, dispersion_sd=1.0
    )
    counts = adata.X.toarray().astype(float)
    high = counts.mean(0) > 2
    estimate = (counts.var(0) - counts.mean(0)) / counts.mean(0) ** 2
    truth = adata.var["dispersion"].to_numpy()
    assert np.log(truth).std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * 200))
    assert np.median(np.log(truth / 0.5)) == pytest.approx(0.0, abs=5 * 1.25 / np.sqrt(200))
    assert stats.spearmanr(estimate[high], truth[high]).statistic > 0.95


def test_library_sizes_and_batch_depth():
    same = simulate(4000, 50, library_size=700.0, library_sd=0.5, batch_depth=0.0)
    log_size = np.log(same.obs["library_size"])
    assert abs(log_size.mean() - np.log(700)) < 5 * 0.5 / np.sqrt(4000)
    assert abs(log_size.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * 4000)
    # Totals follow the library size: their ratio averages to one.
    ratio = rates(same).sum(1)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(4000)

    depth = [
        np.log(adata.obs["library_size"]).groupby(adata.obs["batch"], observed=True).mean()
        for adata in (simulate(4000, 5, n_batches=40, batch_depth=1.0), same)
    ]
    # 40 draws of variance 1 + 0.4**2 / 100, against two means of 2,000 cells each.
    assert P_SMALL < stats.chi2.cdf(39 * depth[0].var() / 1.0016, df=39) < 1 - P_SMALL
    assert np.ptp(depth[1]) < 5 * 0.5 * np.sqrt(2 / 2000)


# bad arguments


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *[(name, [0, -1, 2.5, "3", None, True]) for name in ("n_genes", "n_types", "n_batches")],
        ("n_cells", [0, 7, 2.5]),
        ("seed", [-1, 0.5, None]),
        *[
            (name, [-0.1, np.nan, np.inf, "1", None])
            for name in (
                "type_strength",
                "batch_strength",
                "batch_depth",
                "library_sd",
                "dispersion_sd",
            )
        ],
        *[
            (name, [0, -1.0, np.nan, np.inf, "1"])
            for name in ("type_concentration", "library_size", "dispersion")
        ],
        *[(name, [-0.1, 1.1, np.nan, "1"]) for name in ("type_genes", "composition_shift")],
        ("trajectory", [1, "yes", None]),
    ],
)
def test_bad_arguments_are_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^`{name}` must be [^.]*.*\\.$"):
            simulate(**{"n_cells": 20, name: value})


def test_every_argument_has_a_bad_value_above():
    mark = next(m for m in test_bad_arguments_are_named.pytestmark if m.name == "parametrize")
    assert {name for name, _ in mark.args[1]} == set(simulate(20, 5).uns["simulation"])


def test_fewer_cells_than_batches():
    with pytest.raises(ValueError, match="`n_cells`"):
        simulate(10, n_batches=11)
