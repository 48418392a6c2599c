"""Basins from states: how they merge, and the table that users get."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor
from tqdm.auto import tqdm

from scqbm.ising import RBM
from scqbm.landscape import MergeTree, PairEnergy, barriers, merge_tree
from scqbm.prior import Prior

_NEIGHBOURS = 30  # states to which paths are tried from each state
_PAIRS_AT_A_TIME = 2000


def tree_of(energy: PairEnergy, states: Tensor, silent: bool) -> MergeTree:
    """Merge tree of the states, by the paths between neighbours."""
    values = energy.energy(states)
    pairs = _neighbours(states, values)
    heights = []
    chunks = pairs.split(_PAIRS_AT_A_TIME)
    hide = silent or len(chunks) < 2
    for some in tqdm(chunks, desc="Paths between states", disable=hide):
        heights.append(barriers(energy, states, some))
    height = torch.cat(heights).cpu().numpy() if heights else np.zeros(0)
    return merge_tree(values.cpu().numpy().astype(float), pairs.cpu().numpy(), height)


def _neighbours(states: Tensor, values: Tensor) -> Tensor:
    """Pairs of similar states; each but the lowest also with the most similar one below it."""
    n = len(states)
    pairs = set()
    order = torch.argsort(values, stable=True)
    ranked = states[order]
    for start in range(0, n, 500):
        rows = torch.arange(start, min(start + 500, n))
        apart = torch.cdist(ranked[rows.to(states.device)], ranked, p=1).cpu()
        apart[torch.arange(len(rows)), rows] = torch.inf
        for others in apart.topk(min(_NEIGHBOURS, n - 1), largest=False).indices.T:
            pairs |= set(zip(rows.tolist(), others.tolist(), strict=True))
        above = torch.arange(n) >= rows.unsqueeze(1)
        below = apart.masked_fill(above, torch.inf).argmin(1)
        pairs |= {(i, j) for i, j in zip(rows.tolist(), below.tolist(), strict=True) if i > 0}
    unique = sorted({(max(i, j), min(i, j)) for i, j in pairs if i != j})
    return order[torch.tensor(unique, dtype=torch.long, device=order.device).reshape(-1, 2)]


def as_anndata(
    prior: Prior,
    rbm: RBM,
    energy: PairEnergy,
    states: Tensor,
    tree: MergeTree,
    visits: np.ndarray,
    n_cells: int,
    resolution: float,
    min_cells: int,
) -> AnnData:
    counts = np.bincount(visits[:n_cells], minlength=len(states))
    belongs = tree.cut(resolution, counts, min_cells)
    of_cells, of_draws = belongs[visits[:n_cells]], belongs[visits[n_cells:]]
    deepest = np.unique(belongs)
    n = np.array([(of_cells == state).sum() for state in deepest])
    mass = np.array([(of_draws == state).mean() for state in deepest])
    order = np.lexsort((tree.energy[deepest], -mass, -n))
    deepest, n, mass = deepest[order], n[order], mass[order]
    names = pd.Index([str(i) for i in range(len(deepest))])
    some = torch.as_tensor(deepest, device=states.device)
    code = _code(states[some], prior, rbm).cpu().numpy()
    into, leaving = _ways_out(tree, belongs, deepest)
    landscape = AnnData(
        code.astype(np.float32),
        obs=pd.DataFrame(
            {
                "energy": tree.energy[deepest],
                "depth": leaving - tree.energy[deepest],
                "mass": mass,
                "n_cells": n,
            },
            index=names,
        ),
        var=pd.DataFrame(index=[f"unit_{i}" for i in range(code.shape[1])]),
    )
    # between the deepest states of the basins: paths anew, then the lowest way over the others
    near = _neighbours(states[some], energy.energy(states[some]))
    pairs = torch.combinations(torch.arange(len(deepest)))
    paths = np.full((len(deepest),) * 2, np.inf)
    i, j = near.cpu().numpy().T
    paths[i, j] = paths[j, i] = barriers(energy, states[some], near).cpu().numpy()
    height = paths[tuple(pairs.numpy().T)]
    height = _lowest_ways(pairs.numpy(), height, tree, deepest)
    lowest = tree.energy.min()
    one, other = pairs.numpy().T
    climb = height - np.maximum(tree.energy[deepest][one], tree.energy[deepest][other])
    for key, values in (
        ("barriers", np.maximum(height - lowest, 1e-12)),  # so that no barrier reads as none
        ("connectivities", np.exp(-np.maximum(climb, 0))),
    ):
        upper = sparse.coo_matrix((values, (one, other)), (len(deepest),) * 2)
        landscape.obsp[key] = (upper + upper.T).tocsr()
    position = {state: name for state, name in zip(deepest, names, strict=True)}
    landscape.uns["merge_tree"] = pd.DataFrame(
        {
            "into": [position.get(state, "") for state in into],
            "at_energy": leaving,
        },
        index=names,
    )
    landscape.uns["resolution"] = float(resolution)
    landscape.uns["cells"] = np.array([position[state] for state in of_cells])
    return landscape


def _ways_out(
    tree: MergeTree, belongs: np.ndarray, deepest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which basin each one merges into, -1 if none, and the highest pass on the way there."""
    into, leaving = np.full(len(deepest), -1), np.full(len(deepest), np.inf)
    for k, state in enumerate(deepest):
        top, above = tree.height[state], tree.parent[state]
        while above >= 0 and belongs[above] != above:  # a basin that has merged away
            top, above = max(top, tree.height[above]), tree.parent[above]
        if above >= 0:
            into[k], leaving[k] = above, top
    return into, leaving


def _lowest_ways(
    pairs: np.ndarray, height: np.ndarray, tree: MergeTree, deepest: np.ndarray
) -> np.ndarray:
    """A path may be higher than the way that the merge tree knows of: then that one counts."""
    known = np.full(len(height), np.inf)
    ways = []
    for state in deepest:  # the states above each, with the highest pass on the way
        way, top = {state: -np.inf}, -np.inf
        while tree.parent[state] >= 0:
            top = max(top, tree.height[state])
            state = tree.parent[state]
            way[state] = top
        ways.append(way)
    for k, (i, j) in enumerate(pairs):
        common = ways[i].keys() & ways[j].keys()
        known[k] = min((max(ways[i][s], ways[j][s]) for s in common), default=np.inf)
    return np.minimum(height, known)


def _code(bits: Tensor, prior: Prior, rbm: RBM) -> Tensor:
    """The code that a state stands for; real numbers are where the hidden bits want them."""
    if rbm.gaussian:
        return rbm.visible_field(bits)
    visible, hidden = bits.split([rbm.n_visible, rbm.n_hidden], 1)
    return prior.code(visible, hidden)
