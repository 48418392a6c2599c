"""Diffusion pseudotime on an embedding against a known order of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scqbm.benchmark._inputs import as_arrays, column, known, rows


def trajectory(
    adata: AnnData,
    embeddings: Mapping[str, Any],
    order_key: str,
    *,
    root_key: str | None = None,
    branch_key: str | None = None,
    tips: Sequence[str] | None = None,
    energies: Mapping[str, np.ndarray] | None = None,
    n_neighbors: int = 15,
    seed: int = 0,
) -> pd.DataFrame:
    """How well diffusion pseudotime and prior energy recover a known order.

    Parameters
    ----------
    adata
        The cells. Those without an order take part in the graph but not in the scores.
    embeddings
        From a name to an array, a key of ``adata.obsm`` or a model with
        ``get_latent_representation``.
    order_key
        Column of ``adata.obs`` with numbers that grow along the trajectory; NaN where unknown.
    root_key
        Boolean column of ``adata.obs``: the cells where the trajectory starts. By default the 2%
        of cells with the lowest order. The cell nearest to their mean is the root.
    branch_key
        Column of ``adata.obs`` with the branch of each cell. Adds the correlations within branches
        and the branch accuracy.
    tips
        Branches at the ends of the trajectory; by default all branches.
    energies
        From the name of an embedding to the prior energy of each cell, which is compared with the
        order. This needs no root.
    n_neighbors
        Number of neighbours in the graph of the diffusion.
    seed
        Seed of the pairs of cells in the sign test.

    Returns
    -------
    Tidy table with the columns ``method``, ``group``, ``metric`` and ``value``. The metrics of the
    group ``"pseudotime"`` are:

    - ``Kendall`` and ``Spearman``: rank correlations of pseudotime with the order;
    - ``Kendall within branches`` and ``Spearman within branches``: their means over the branches;
    - ``branch accuracy``: share of the cells of a tip's branch whose nearest tip, by diffusion
      distance, is their own; mean over tips;
    - ``unreachable``: share of the cells that the graph does not connect with the root. They count
      as the latest cells.

    The metrics of the group ``"energy"`` are:

    - ``Kendall``: rank correlation with the order. It is positive if the energy rises along the
      trajectory;
    - ``rising pairs`` and ``p-value``: a sign test over random pairs of an early and a late cell,
      each cell in one pair.

    Examples
    --------
    >>> scqbm.benchmark.trajectory(adata, {"QBMVI": model}, "day", branch_key="lineage")
    """
    order = pd.to_numeric(pd.Series(column(adata, "order_key", order_key)), errors="coerce")
    order = order.to_numpy(float)
    ordered = np.isfinite(order)
    if len(np.unique(order[ordered])) < 2:
        raise ValueError("`order_key` must hold at least two different numbers.")
    start = _start(adata, root_key, order, ordered)
    branch = None if branch_key is None else column(adata, "branch_key", branch_key)
    table = []
    for name, array in as_arrays(adata, embeddings).items():
        values = _pseudotime_scores(array, order, ordered, start, branch, tips, n_neighbors)
        table += rows(name, "pseudotime", values)
    for name, energy in (energies or {}).items():
        energy = np.asarray(energy, float)
        if energy.shape != order.shape:
            raise ValueError(f"`energies[{name!r}]` must have one number a cell.")
        table += rows(name, "energy", energy_against_order(energy[ordered], order[ordered], seed))
    return pd.DataFrame(table)


def _start(adata, root_key, order, ordered) -> np.ndarray:
    """A mask of the cells where the trajectory starts."""
    if root_key is not None:
        start = np.array([bool(root) for root in column(adata, "root_key", root_key)])
        if not start.any():
            raise ValueError("`root_key` must mark at least one cell.")
        return start
    earliest = np.argsort(np.where(ordered, order, np.inf), kind="stable")
    start = np.zeros(len(order), bool)
    start[earliest[: max(1, round(0.02 * ordered.sum()))]] = True
    return start


def energy_against_order(energy: np.ndarray, order: np.ndarray, seed: int = 0) -> dict:
    """Does the energy rise along the order? Kendall's tau, and a sign test over pairs of cells.

    A pair is a random cell of the earlier half and one of the later half. Each cell is in at most
    one pair. Pairs of equal energy are left out.
    """
    from scipy.stats import binomtest, kendalltau

    rng = np.random.default_rng(seed)
    middle = np.median(order)
    early, late = np.flatnonzero(order < middle), np.flatnonzero(order > middle)
    n = min(len(early), len(late))
    difference = energy[rng.permutation(late)[:n]] - energy[rng.permutation(early)[:n]]
    difference = difference[difference != 0]
    rising = int((difference > 0).sum())
    scores = {"Kendall": kendalltau(energy, order).statistic}
    if len(difference):
        scores["rising pairs"] = rising / len(difference)
        scores["p-value"] = binomtest(rising, len(difference)).pvalue
    return scores


def _pseudotime_scores(array, order, ordered, start, branch, tips, n_neighbors) -> dict:
    diffusion = _Diffusion(array, n_neighbors)
    time = diffusion.time_from(_middle(array, np.flatnonzero(start)))
    unreachable = ~np.isfinite(time)
    time[unreachable] = 2.0  # later than all others, which have at most 1
    scores = _correlations(time[ordered], order[ordered])
    if branch is not None:
        parts = []
        for one in dict.fromkeys(branch[ordered & known(branch)]):
            mine = ordered & (branch == one)
            if len(np.unique(order[mine])) > 1:
                parts.append(_correlations(time[mine], order[mine]))
        if parts:
            for name in parts[0]:
                within = [part[name] for part in parts]
                scores[f"{name} within branches"] = float(np.mean(within))
        ends = list(dict.fromkeys(branch[known(branch)]) if tips is None else tips)
        scores["branch accuracy"] = _branch_accuracy(
            diffusion, array, order, ordered, branch, ends
        )
    scores["unreachable"] = unreachable.mean()
    return scores


def _branch_accuracy(diffusion, array, order, ordered, branch, ends) -> float:
    """Share of cells whose nearest tip is that of their own branch; mean over tips."""
    from_tip, used = [], np.zeros(len(order), bool)
    for end in ends:
        mine = np.flatnonzero(ordered & (branch == end))
        if not len(mine):
            raise ValueError(f"`tips`: no cell with an order is in branch {end!r}.")
        last = mine[np.argsort(order[mine], kind="stable")[-max(1, len(mine) // 10) :]]
        used[last] = True
        from_tip.append(diffusion.time_from(_middle(array, last)))
    nearest = np.argmin(from_tip, axis=0)
    shares = []
    for i, end in enumerate(ends):
        mine = ordered & (branch == end) & ~used
        if mine.any():
            shares.append(np.mean(nearest[mine] == i))
    return np.mean(shares) if shares else np.nan


def _correlations(time, order) -> dict[str, float]:
    from scipy.stats import kendalltau, spearmanr

    if np.ptp(time) == 0:  # all cells at one time: no correlation is defined
        return {"Kendall": 0.0, "Spearman": 0.0}
    return {
        "Kendall": kendalltau(time, order).statistic,
        "Spearman": spearmanr(time, order).statistic,
    }


def _middle(array, members) -> int:
    """The member nearest to the mean of the members."""
    away = np.square(array[members] - array[members].mean(0)).sum(1)
    return int(members[away.argmin()])


class _Diffusion:
    """Diffusion pseudotime (Haghverdi 2016) from any root on scanpy's diffusion map.

    scanpy's own ``tl.dpt`` takes each eigenvalue above 0.9994 for a steady state, and so loses the
    leading direction of long trajectories with little noise. Here the number of steady states is
    the number of connected parts of the graph.
    """

    def __init__(self, array: np.ndarray, n_neighbors: int):
        import scanpy as sc
        from scipy.sparse.csgraph import connected_components

        obs = pd.DataFrame(index=[str(i) for i in range(len(array))])
        cells = AnnData(obs=obs, obsm={"embedding": array})
        sc.pp.neighbors(cells, n_neighbors, use_rep="embedding", random_state=0)
        n_parts, self.part = connected_components(cells.obsp["connectivities"], directed=False)
        sc.tl.diffmap(cells, n_comps=min(n_parts + 14, len(array) - 2), random_state=0)
        eigenvalues = cells.uns["diffmap_evals"].astype(float)[n_parts:]
        # walks of all lengths together: the sum of all powers of an eigenvalue
        self.place = cells.obsm["X_diffmap"][:, n_parts:] * eigenvalues / (1 - eigenvalues)

    def time_from(self, root: int) -> np.ndarray:
        """Distance from ``root``, at most 1; infinite for cells that the graph does not reach."""
        distance = np.linalg.norm(self.place - self.place[root], axis=1)
        reached = self.part == self.part[root]
        return np.where(reached, distance / max(distance[reached].max(), 1e-12), np.inf)
