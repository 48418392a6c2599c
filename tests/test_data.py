"""Simulated data against their known truth, and the reading of dataset files."""

import os
import re
import subprocess
import sys

import anndata
import numpy as np
import pytest
from scipy import sparse, stats

from scqbm.data import _files, _simulate, available, load, prepare, simulate

P_SMALL = 1e-6  # chance that a correct simulator fails a test on a fresh seed


def rates(adata):
    """Counts over the true library size, so that depth plays no role."""
    return adata.X.toarray().astype(float) / adata.obs["library_size"].to_numpy()[:, None]


def true_means(adata):
    """Expected counts, from the formula in the docstring of simulate."""
    log_rate = adata.obsm["programs"] @ adata.varm["programs"].T
    log_rate += adata.var["log_base"].to_numpy()
    log_rate += adata.varm["batch_effect"].T[adata.obs["batch"].cat.codes]
    share = np.exp(log_rate) / np.exp(log_rate).sum(1, keepdims=True)
    return adata.obs["library_size"].to_numpy()[:, None] * share


def assert_same(a, b):
    assert (a.X != b.X).nnz == 0
    assert a.obs.astype(str).equals(b.obs.astype(str))
    assert a.var.equals(b.var)
    for key in a.varm:
        np.testing.assert_array_equal(a.varm[key], b.varm[key])


# simulate: form


@pytest.mark.parametrize("trajectory", [False, True])
def test_seed_decides_everything(trajectory):
    first = simulate(300, 60, trajectory=trajectory, seed=3)
    assert_same(first, simulate(300, 60, trajectory=trajectory, seed=3))
    other = simulate(300, 60, trajectory=trajectory, seed=4)
    assert (first.X != other.X).mean() > 0.1
    assert not np.array_equal(first.obs["batch"], other.obs["batch"])
    assert not np.array_equal(first.obs["cell_type"], other.obs["cell_type"])


@pytest.mark.parametrize("trajectory", [False, True])
def test_file_round_trip_recreates_the_data(tmp_path, trajectory):
    adata = simulate(300, 60, trajectory=trajectory, batch_strength=0.7, seed=1)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert_same(adata, read)
    # The stored arguments come back as numpy scalars and must still be accepted.
    assert_same(adata, simulate(**read.uns["simulation"]))


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


# simulate: distributions


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


# simulate: types and batches


@pytest.mark.parametrize("seed", range(3))
def test_siblings_are_closer_than_distant_types(seed):
    adata = simulate(
        4000, 1000, n_types=4, type_genes=0.2, type_concentration=50.0, library_size=5000.0,
        batch_strength=0.0, seed=seed,
    )  # fmt: skip
    rate = rates(adata)
    kept = rate.mean(0) > np.quantile(rate.mean(0), 0.3)  # the log of rarer genes is noise
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    profiles = np.log(np.stack([rate[codes == t].mean(0)[kept] for t in range(4)]))
    profiles -= profiles.mean(1, keepdims=True)
    distance = ((profiles[:, None] - profiles[None]) ** 2).mean(-1)

    siblings = distance[[0, 2], [1, 3]]
    distant = distance[:2, 2:].ravel()
    assert siblings.max() < distant.min()
    # Each edge adds type_genes * type_strength**2 = 0.2: two edges to a sibling, four across.
    # An edge has about 140 changed genes kept, so its sum varies by sqrt(3 / 140) = 15%.
    assert siblings.mean() == pytest.approx(0.4, rel=0.35)
    assert distant.mean() == pytest.approx(0.8, rel=0.35)


def test_type_distance_counts_edges():
    leaves = simulate(50, 5, n_types=5).uns["type_distance"]  # ((0 1) 2) (3 4)
    np.testing.assert_array_equal(leaves[0], [0, 2, 3, 5, 5])
    np.testing.assert_array_equal(leaves[3], [5, 5, 4, 0, 2])
    branches = simulate(50, 5, n_types=5, trajectory=True).uns["type_distance"]
    np.testing.assert_array_equal(branches[0], [0, 1, 1, 2, 2])  # 0 -> 1, 2; 1 -> 3, 4
    np.testing.assert_array_equal(branches[2], [1, 2, 0, 3, 3])


def test_type_strength_zero_means_one_type():
    adata = simulate(500, 50, type_strength=0.0)
    assert np.all(adata.varm["programs"] == 0)


def batch_p_values(adata):
    """Welch's t test between two batches, for each well-expressed gene within each type."""
    rate, first = rates(adata), (adata.obs["batch"] == "batch_0").to_numpy()
    found = []
    for label in adata.obs["cell_type"].cat.categories:
        of_type = (adata.obs["cell_type"] == label).to_numpy()
        high = adata.X[of_type].mean(axis=0).A1 > 1
        a, b = rate[of_type & first][:, high], rate[of_type & ~first][:, high]
        assert min(len(a), len(b)) > 300
        found.append(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return np.concatenate(found)


@pytest.mark.parametrize("seed", range(3))
def test_batch_strength_zero_means_no_difference(seed):
    options = dict(n_types=3, type_concentration=50.0, batch_depth=0.5, seed=seed)
    p = batch_p_values(simulate(4000, 400, batch_strength=0.0, **options))
    assert len(p) > 300
    # Below 1% by chance alone: a binomial count.
    assert np.sum(p < 0.01) <= stats.binom.ppf(1 - P_SMALL, len(p), 0.01)

    p = batch_p_values(simulate(4000, 400, batch_strength=0.5, **options))
    assert np.mean(p < 0.01) > 0.5


def test_batch_strength_sets_the_size_of_the_effect():
    adata = simulate(
        4000, 400, 1, 2, batch_strength=0.5, library_size=5000.0, library_sd=0.0, batch_depth=1.0
    )
    rate, first = rates(adata), (adata.obs["batch"] == "batch_0").to_numpy()
    high = adata.X.mean(axis=0).A1 > 2
    change = np.log(rate[first].mean(0) / rate[~first].mean(0))[high]
    # The difference of two effects has variance 2 * 0.5**2; counting noise adds under 1% to it.
    level = stats.chi2.cdf((len(change) - 1) * change.var(ddof=1) / 0.5, df=len(change) - 1)
    assert P_SMALL < level < 1 - P_SMALL
    truth = adata.varm["batch_effect"][:, 0] - adata.varm["batch_effect"][:, 1]
    assert stats.pearsonr(change, truth[high]).statistic > 0.98


def composition_p_value(adata):
    table = adata.obs.groupby(["batch", "cell_type"], observed=False).size().unstack()
    return stats.chi2_contingency(table).pvalue


@pytest.mark.parametrize("trajectory", [False, True])
def test_composition(trajectory):
    options = dict(n_cells=4000, n_genes=5, n_batches=3, trajectory=trajectory)
    assert composition_p_value(simulate(composition_shift=0.0, **options)) > 1e-4
    assert composition_p_value(simulate(composition_shift=1.0, **options)) < P_SMALL

    equal = simulate(type_concentration=1e6, **options).obs["cell_type"].value_counts()
    unequal = simulate(type_concentration=1.0, **options).obs["cell_type"].value_counts()
    assert stats.chisquare(equal).pvalue > 1e-4
    assert stats.chisquare(unequal).pvalue < P_SMALL


# simulate: trajectory


@pytest.fixture(scope="module")
def path():
    """Seven branches: 0, then 1 and 2, then 3 to 6."""
    return simulate(
        10_000, 300, n_types=7, trajectory=True, type_genes=0.3, type_concentration=50.0,
        batch_strength=0.0, library_size=3000.0,
    )  # fmt: skip


def window(adata, branch, low, high):
    """Square roots of mean rates of the cells between two shares of a branch, in two halves.

    The halves tell noise from change. The square root makes the genes' noise alike.
    """
    time = adata.obs["pseudotime"].to_numpy()
    on = (adata.obs["branch"] == f"branch_{branch}").to_numpy()
    share = (time - time[on].min()) / np.ptp(time[on])
    cells = np.flatnonzero(on & (share >= low) & (share <= high))
    assert len(cells) > 50
    rate = adata.X[cells].toarray() / adata.obs["library_size"].to_numpy()[cells, None]
    return [np.sqrt(rate[half::2].mean(0)) for half in (0, 1)]


def squared_distance(a, b):
    """Unbiased squared distance: product of the two halves' differences, so that noise cancels."""
    return np.dot(a[0] - b[0], a[1] - b[1])


def test_pseudotime_has_a_third_of_its_range_on_each_level(path):
    time = path.obs["pseudotime"].groupby(path.obs["branch"], observed=True)
    level = np.array([0, 1, 1, 2, 2, 2, 2])
    assert path.obs["pseudotime"].between(0, 1).all()
    assert np.all(time.min() >= level / 3) and np.all(time.max() <= (level + 1) / 3)
    for _, values in time:  # and uniformly
        own = 3 * (values - np.floor(3 * values.mean()) / 3)
        assert stats.kstest(own, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("branch", range(7))
def test_neighbours_in_pseudotime_are_closer(path, branch):
    windows = [window(path, branch, k / 5, (k + 1) / 5) for k in range(5)]
    near = [squared_distance(windows[k], windows[k + 1]) for k in range(4)]
    far = [squared_distance(windows[k], windows[k + 3]) for k in range(2)]
    # Lasting and passing changes of equal size make these 0.18 and 0.61 on average.
    assert np.mean(near) < 0.6 * np.mean(far)


@pytest.mark.parametrize("child", range(1, 7))
def test_branches_start_where_their_parent_ends(path, child):
    parent = (child - 1) // 2
    end, start = window(path, parent, 0.9, 1.0), window(path, child, 0.0, 0.1)
    jump = squared_distance(end, start)
    along = squared_distance(start, window(path, child, 0.9, 1.0))
    # The two windows' centres are 0.1 of a branch apart: without a jump, the squared distance is
    # about (0.1 / 0.9)**2 = 1% of that along the branch, and some more where the path curves.
    assert jump < 0.15 * along


def test_sister_branches_part(path):
    for left, right in [(1, 2), (3, 4), (5, 6)]:
        at_start = squared_distance(window(path, left, 0, 0.1), window(path, right, 0, 0.1))
        at_end = squared_distance(window(path, left, 0.9, 1), window(path, right, 0.9, 1))
        assert at_start < 0.1 * at_end


# simulate: bad arguments


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


# files


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SCQBM_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("value", [None, "", "no/such/folder"])
def test_without_a_folder(monkeypatch, tmp_path, value):
    simulate(20, 5).write_h5ad(tmp_path / "pbmc.h5ad")
    monkeypatch.chdir(tmp_path)  # which must not count as the data folder
    monkeypatch.delenv("SCQBM_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("SCQBM_DATA", value)
    assert available() == []
    with pytest.raises(FileNotFoundError, match="'pbmc'.*set .*SCQBM_DATA.*pbmc.h5ad"):
        load("pbmc")


def test_load_reads_what_is_available(folder):
    first, second = simulate(30, 10, seed=1), simulate(30, 10, seed=2)
    second.write_h5ad(folder / "b.v2.h5ad")
    first.write_h5ad(folder / "a.h5ad")
    (folder / "notes.txt").write_text("not a dataset")
    assert available() == ["a", "b.v2"]
    assert_same(load("a"), first)
    assert_same(load("b.v2"), second)
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder))):
        load("notes")


def test_scanpy_is_not_imported_with_the_file():
    # Run alone: what else scqbm imports is not at stake.
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('scanpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, _files.__file__]).returncode == 0


# prepare


@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize("dense", [False, True])
def test_prepare_keeps_raw_counts_of_the_genes_that_vary(batch_key, dense):
    adata = simulate(2000, 400, type_strength=2.0, type_genes=0.03, library_size=5000.0)
    if dense:
        adata.X = adata.X.toarray()
    before = adata.copy()
    kept = prepare(adata, batch_key, n_top_genes=60)
    assert kept.shape == (2000, 60) and not kept.is_view
    assert (before.X != adata.X).sum() == 0 and before.var.equals(adata.var)
    assert (kept.X != adata[:, kept.var_names].X).sum() == 0
    assert list(kept.var_names) == [n for n in adata.var_names if n in set(kept.var_names)]

    changes = np.any(adata.varm["programs"] != 0, axis=1)
    assert np.any(kept.varm["programs"] != 0, axis=1).mean() > changes.mean() + 0.3


def test_prepare_ranks_within_batches():
    # With a huge batch effect, ranking over all cells picks batch genes; within batches, types.
    adata = simulate(2000, 400, 4, type_strength=2.0, type_genes=0.05, batch_strength=1.5)
    share = {
        key: np.any(prepare(adata, key, 50).varm["programs"] != 0, axis=1).mean()
        for key in (None, "batch")
    }
    assert share["batch"] > share[None]


def test_prepare_with_few_genes_keeps_all():
    adata = simulate(100, 20)
    for n_top_genes in (20, 2000):
        kept = prepare(adata, "batch", n_top_genes)
        assert_same(kept, adata)
        assert kept is not adata


def test_prepare_leaves_out_empty_cells():
    adata = simulate(100, 20)
    adata.X[3] = 0
    kept = prepare(adata)
    assert "cell_3" not in kept.obs_names and kept.n_obs == 99


def test_prepare_bad_arguments():
    adata = simulate(50, 20)
    with pytest.raises(ValueError, match="`batch_key`.*'donor'"):
        prepare(adata, "donor")
    for n_top_genes in (0, 1.5):
        with pytest.raises(ValueError, match="`n_top_genes`"):
            prepare(adata, n_top_genes=n_top_genes)
    for bad in (0.5, -1.0, np.nan):
        adata.X.data[0] = bad
        with pytest.raises(ValueError, match="raw counts"):
            prepare(adata)


def real(name):
    if name not in available():
        pytest.skip(f"SCQBM_DATA has no {name}")
    return load(name)


needs_data = pytest.mark.skipif(
    not os.environ.get("SCQBM_DATA"), reason="SCQBM_DATA names no data folder"
)


@needs_data
@pytest.mark.parametrize(("name", "batch_key"), [("paul15", None), ("pancreas_4studies", "batch")])
def test_prepare_real_data(name, batch_key):
    adata = real(name)
    kept = prepare(adata, batch_key, n_top_genes=1000)
    assert kept.shape == (adata.n_obs, 1000)
    assert (kept.X != adata[:, kept.var_names].X).nnz == 0
    assert kept.obs.equals(adata.obs)


@needs_data
def test_chosen_genes_tell_published_types_apart():
    # Not on paul15: its genes were selected before publication, so the rest tell types as well.
    adata = real("pancreas_4studies")
    chosen = adata.var_names.isin(prepare(adata, "batch", n_top_genes=1000).var_names)
    total = np.asarray(adata.X.sum(axis=1))
    logged = np.log1p(1e4 * adata.X.toarray() / total)
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    between = np.zeros(adata.n_vars)
    for code in np.unique(codes):
        shift = logged[codes == code].mean(0) - logged.mean(0)
        between += (codes == code).mean() * shift**2
    share = between / logged.var(0).clip(1e-9)
    assert np.median(share[chosen]) > 2 * np.median(share[~chosen])
