"""Simulated data: types, batches and trajectories differ as the arguments say."""

import numpy as np
import pytest
from helpers import P_SMALL, rates
from scipy import stats

from scqbm.data import simulate

# types and batches


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


# trajectory


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
