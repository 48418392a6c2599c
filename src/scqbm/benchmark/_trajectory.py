"""Diffusion pseudotime on an embedding against a known order of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scqbm.benchmark._inputs import as_arrays, column


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
        Column of booleans, the cells among which the trajectory starts. By default the 2% with
        the lowest order. The cell nearest their mean is the root.
    branch_key
        Column with the branch of each cell. Adds the correlations within branches and the
        assignment of cells to tips.
    tips
        Branches at the ends; by default all.
    energies
        Prior energy of each cell by the name of its embedding, compared with the order without
        any root.
    n_neighbors
        Neighbours of the diffusion graph.
    seed
        Seed of the pairs of cells in the sign test.

    Returns
    -------
    Tidy table with the columns ``method``, ``group``, ``metric`` and ``value``. Group
    ``"pseudotime"``: ``Kendall``, ``Spearman``; the same ``within branches`` (mean over branches
    with more than one order); ``branch accuracy``, the mean share of cells of each tip's branch
    whose nearest tip by diffusion distance is their own; ``unreachable``, the share of cells that
    the graph does not connect with the root, which count as latest. Group ``"energy"``:
    ``Kendall`` with the order (positive: energy rises as potency falls), and the sign test over
    random disjoint pairs of an early and a late cell: ``rising pairs`` and ``p-value``.
    """
    order = pd.to_numeric(pd.Series(column(adata, "order_key", order_key)), errors="coerce")
    order = order.to_numpy(float)
    known = np.isfinite(order)
    if len(np.unique(order[known])) < 2:
        raise ValueError("`order_key` must hold at least two different numbers.")
    if root_key is not None:
        start = np.array([bool(r) for r in column(adata, "root_key", root_key)])
        if not start.any():
            raise ValueError("`root_key` must mark at least one cell.")
    else:
        n = max(1, round(0.02 * known.sum()))
        start = np.zeros(len(order), bool)
        start[np.argsort(np.where(known, order, np.inf), kind="stable")[:n]] = True
    branch = None if branch_key is None else column(adata, "branch_key", branch_key)
    rows = []
    for name, array in as_arrays(adata, embeddings).items():
        values = _pseudotime_scores(array, order, known, start, branch, tips, n_neighbors)
        rows += [("pseudotime", name, m, v) for m, v in values.items()]
    for name, energy in (energies or {}).items():
        energy = np.asarray(energy, float)
        if energy.shape != order.shape:
            raise ValueError(f"`energies[{name!r}]` must have one number a cell.")
        values = energy_against_order(energy[known], order[known], seed)
        rows += [("energy", name, m, v) for m, v in values.items()]
    table = pd.DataFrame(rows, columns=["group", "method", "metric", "value"])
    return table[["method", "group", "metric", "value"]]


def energy_against_order(energy: np.ndarray, order: np.ndarray, seed: int = 0) -> dict:
    """Does the energy rise along the order? Kendall's tau, and a sign test over pairs of cells.

    Pairs join a random cell of the earlier half with one of the later half, each cell once; ties
    in energy are left out.
    """
    from scipy.stats import binomtest, kendalltau

    rng = np.random.default_rng(seed)
    middle = np.median(order)
    early, late = np.flatnonzero(order < middle), np.flatnonzero(order > middle)
    n = min(len(early), len(late))
    difference = energy[rng.permutation(late)[:n]] - energy[rng.permutation(early)[:n]]
    difference = difference[difference != 0]
    rising = int((difference > 0).sum())
    scores = {"Kendall": float(kendalltau(energy, order).statistic)}
    if len(difference):
        scores["rising pairs"] = rising / len(difference)
        scores["p-value"] = float(binomtest(rising, len(difference)).pvalue)
    return scores


def _pseudotime_scores(array, order, known, start, branch, tips, n_neighbors) -> dict:
    diffusion = _Diffusion(array, n_neighbors)
    time = diffusion.time_from(_middle(array, np.flatnonzero(start)))
    unreachable = ~np.isfinite(time)
    time[unreachable] = 2.0  # reachable cells have at most 1
    scores = _correlations(time[known], order[known])
    if branch is not None:
        parts = []
        for one in dict.fromkeys(branch[known]):
            mine = known & (branch == one)
            if one is not None and len(np.unique(order[mine])) > 1:
                parts.append(_correlations(time[mine], order[mine]))
        if parts:
            for name in parts[0]:
                scores[f"{name} within branches"] = np.mean([part[name] for part in parts])
        ends = [b for b in dict.fromkeys(branch) if b is not None] if tips is None else list(tips)
        scores["branch accuracy"] = _branch_accuracy(diffusion, array, order, known, branch, ends)
    scores["unreachable"] = unreachable.mean()
    return {name: float(value) for name, value in scores.items()}


def _branch_accuracy(diffusion, array, order, known, branch, ends) -> float:
    """Balanced share of cells whose nearest tip is that of their own branch."""
    from_tip, used = [], np.zeros(len(order), bool)
    for end in ends:
        mine = np.flatnonzero(known & (branch == end))
        if not len(mine):
            raise ValueError(f"`tips`: no cell with an order is in branch {end!r}.")
        last = mine[np.argsort(order[mine], kind="stable")[-max(1, len(mine) // 10) :]]
        used[last] = True
        from_tip.append(diffusion.time_from(_middle(array, last)))
    nearest = np.argmin(from_tip, axis=0)
    shares = []
    for i, end in enumerate(ends):
        mine = known & (branch == end) & ~used
        if mine.any():
            shares.append(np.mean(nearest[mine] == i))
    return np.mean(shares) if shares else np.nan


def _correlations(time, order) -> dict[str, float]:
    from scipy.stats import kendalltau, spearmanr

    if np.ptp(time) == 0:  # no order at all
        return {"Kendall": 0.0, "Spearman": 0.0}
    return {
        "Kendall": kendalltau(time, order).statistic,
        "Spearman": spearmanr(time, order).statistic,
    }


def _middle(array, members) -> int:
    """The member nearest the mean of the members."""
    away = np.square(array[members] - array[members].mean(0)).sum(1)
    return int(members[away.argmin()])


class _Diffusion:
    """Diffusion pseudotime (Haghverdi 2016) from any root on scanpy's diffusion map.

    scanpy's own ``tl.dpt`` takes every eigenvalue above .9994 for a steady state and so loses the
    leading direction of long, clean trajectories. Here steady states are counted: one for each
    connected part of the graph.
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
        # over all walks of any length: the sum of the powers of an eigenvalue
        self.place = cells.obsm["X_diffmap"][:, n_parts:] * eigenvalues / (1 - eigenvalues)

    def time_from(self, root: int) -> np.ndarray:
        """Distance from ``root``, at most 1; infinite where the graph does not lead."""
        distance = np.linalg.norm(self.place - self.place[root], axis=1)
        reached = self.part == self.part[root]
        return np.where(reached, distance / max(distance[reached].max(), 1e-12), np.inf)
